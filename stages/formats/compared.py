"""Two answers side by side, and which of them somebody prefers: `output_1`, `output_2` and a preference."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stages.config.errors import UserError
from stages.formats.columns import Path, normal
from stages.formats.format import ASKED, BEFORE, TURNS, Format, Said, is_turns, roles_of
from stages.formats.row import BadRow

ANSWER = re.compile(r"(model_|human_)?(output|response|answer|completion|generation|conversation|reply|ref)_?")
SIDES = {"1": "2", "a": "b", "0": "1"}  # how the columns of the two are told apart
PREFERENCE = "preference preferred winner better better_response_id majority choice verdict label labels"
TIES = ("tie", "both", "same", "equal", "tie_bothbad", "both_bad", "neither", "draw")


class Compared(Format):
    roles = roles_of(TURNS, ASKED, BEFORE, a="", b="", preference=PREFERENCE)
    needs = ("a", "b", "preference")
    compares = True

    def named(self, columns: Collection[str]) -> Mapping[str, str]:
        for a in sorted(map(normal, columns)):
            for one, other in SIDES.items():
                b = a.removesuffix(one) + other
                if a.endswith(one) and b in map(normal, columns) and ANSWER.fullmatch(a.removesuffix(one)):
                    return {**self.roles, "a": a, "b": b}
        return self.roles

    def fits(self, row: Mapping[str, Any]) -> bool:
        whole = is_turns(row["a"]) and is_turns(row["b"])
        return whole or (isinstance(row["a"], str) and ("prompt" in row or "messages" in row))

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], way_out: str) -> None:
        a, b = (normal(str(names[side])) for side in ("a", "b"))
        one, other = (a[-1], b[-1]) if SIDES.get(a[-1:]) == b[-1:] else ("1", "2")
        self.sides = {each: score for name, score in ((a, 1.0), (b, 0.0)) for each in (name, f"model_{name[-1]}")}
        self.sides |= {one: 1.0, other: 0.0} | dict.fromkeys(TIES, 0.5)
        if (one, other) == ("1", "2"):
            self.sides |= {"0": 0.5, "1_5": 0.5}
        told = {self.labels.get(key, key): key for key in map(plain, (row.get("preference") for row in rows)) if key}
        unclear = sorted(key for value, key in told.items() if normal(value) not in self.sides)
        if unclear or ("0" in told and "2" not in told and other == "2"):
            raise UserError(
                f"{names['preference']} holds {', '.join(sorted(map(str, told.values())))}: which of {names['a']} and "
                f"{names['b']} is that? {way_out}"
            )

    def said(self, row: Mapping[str, Any]) -> Said:
        key = plain(row["preference"])
        score = self.sides.get(normal(self.labels.get(key, key)))
        if score is None:
            raise BadRow("preference", f"names neither answer, nor a tie: {row['preference']!r:.40}")
        if "prompt" in row or "messages" in row:
            prompt = self.request(row)
            a, b = (self.answer(row[side], side, prompt) for side in ("a", "b"))
        else:
            (prompt, a), (other, b) = (self.whole(row, side) for side in ("a", "b"))
            if prompt != other:
                raise BadRow("b", "answers another prompt than a")
        if a == b:
            raise BadRow("b", "is the same as a")
        return Said(prompt, [a, b], [score, 1 - score])


def plain(value: Any) -> str:
    """A preference as a word: 1, 1.0 and "1" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower().removesuffix(".0") if value is not None else ""
