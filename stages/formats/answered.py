"""A request with its answer: Alpaca, Dolly, TRL's prompt and completion, question and answer."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import ASKED, BEFORE, COMPLETION, THOUGHT, WEIGHT, Format, Said, roles_of


class Answered(Format):
    roles = roles_of(ASKED, BEFORE, THOUGHT, WEIGHT, completion=COMPLETION)
    needs = ("prompt", "completion")

    def said(self, row: Mapping[str, Any]) -> Said:
        messages = self.request(row)
        return self.learnt(row, messages, self.answer(row["completion"], "completion", messages, row.get("reasoning")))
