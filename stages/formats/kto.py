"""KTO's rows: a conversation, and whether its answer is a good one."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import ASKED, BEFORE, COMPLETION, THOUGHT, TURNS, Format, Said, roles_of
from stages.formats.row import BadRow
from stages.formats.turns import split_off_answer

FLAGS = {"true": 1.0, "false": 0.0}


class KTO(Format):
    roles = roles_of(TURNS, ASKED, BEFORE, THOUGHT, label="label kto_tag", completion=COMPLETION)
    needs = ("label",)

    def fits(self, row: Mapping[str, Any]) -> bool:
        return self.flag(row["label"]) is not None and ("messages" in row or {"prompt", "completion"} <= {*row})

    def flag(self, value: Any) -> float | None:
        """1 of a good answer, 0 of a bad one; None of what says neither. Numbers need `labels: {1: true, 0: false}`:
        elsewhere they are classes."""
        given = str(value).lower()
        return FLAGS.get(self.labels.get(given, given).lower())

    def said(self, row: Mapping[str, Any]) -> Said:
        if (score := self.flag(row["label"])) is None:
            raise BadRow("label", f"must be true or false, is {row['label']!r:.40}")
        if "completion" in row and "messages" not in row:
            messages = self.request(row)
            answer: str | None = self.answer(row["completion"], "completion", messages, row.get("reasoning"))
        else:
            messages, answer = split_off_answer(self.asked(row))
        if answer is None:
            raise BadRow("", "no assistant turn that the label could be of")
        return Said(messages, [answer], [score], graded=True)
