"""Two answers side by side, and which of them somebody prefers: `output_1`, `output_2` and a preference."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stages.config.errors import UserError
from stages.formats.columns import Path, label_word, normal_name, parse_cell
from stages.formats.format import CONTEXT, PROMPT, TURNS, Format, ParsedRow, is_turns, only_text, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.scored import parse_number
from stages.formats.turns import ROLE_KEYS, first_value
from stages.store.records import Message

ANSWER = re.compile(r"(model_|human_)?(output|response|answer|completion|generation|conversation|reply|ref)_?")
SIDES = {"1": "2", "a": "b", "0": "1"}  # how the columns of the two are told apart
PREFERENCE = "preference preferred winner better better_response_id majority choice verdict label labels"
SCORES = "score rating reward winner_model"  # a number for each of the two, of which the higher is better
MAX_SHOWN = 9  # values, in an error
NUMBER = re.compile(r"-?\d+(\.\d+)?")
TIES = ("tie", "both", "same", "equal", "tie_bothbad", "both_bad", "neither", "draw")


class Compared(Format):
    roles = roles_of(TURNS, PROMPT, CONTEXT, a="", b="", preference=PREFERENCE, turn="turn")
    needs = ("a", "b", "preference")
    compares = True

    def role_names(self, columns: Collection[str]) -> Mapping[str, str]:
        names = {*map(normal_name, columns)}
        for a in sorted(names):
            for one, other in SIDES.items():
                b = a.removesuffix(one) + other
                third = a.removesuffix(one) + chr(ord(other) + 1)  # of more than two one is no preference
                is_pair = b in names and third not in names
                if a.endswith(one) and is_pair and ANSWER.fullmatch(a.removesuffix(one)):
                    pairs = " ".join(f"{name}_{one}+{name}_{other}" for name in SCORES.split())
                    return {**self.roles, "a": a, "b": b, "preference": f"{PREFERENCE} {pairs}"}
        return self.roles

    def fits(self, row: Mapping[str, Any]) -> bool:
        whole = is_turns(row["a"]) and is_turns(row["b"])
        return whole or (isinstance(row["a"], str) and ("prompt" in row or "messages" in row))

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:
        self.names, self.setting, self.values = names, labels, Counter[str]()
        a, b = (normal_name(str(names[side])) for side in ("a", "b"))
        one, other = (a[-1], b[-1]) if SIDES.get(a[-1:]) == b[-1:] else ("1", "2")
        self.sides = {
            word: score for column, score in ((a, 1.0), (b, 0.0)) for word in (column, f"model_{column[-1]}")
        }
        self.sides |= {one: 1.0, other: 0.0, "left": 1.0, "right": 0.0} | dict.fromkeys(TIES, 0.5)
        if (one, other) == ("1", "2"):
            self.sides["1_5"] = 0.5
        if isinstance(names["preference"], str):
            values = {label_word(row.get("preference")) for row in rows} - {""}
            if any(self.first_score(value) is None for value in values):
                raise self.unclear_error(values)

    def first_score(self, value: str) -> float | None:
        """How good the first answer is, by a preference as a word: 1, 0, or 0.5 of a tie; None where the word names
        neither. A number names the answer whose column bears that number: what another means, only `labels` can tell,
        since sets differ in whether 0 is the first answer or a tie."""
        word = self.labels.get(value, value)
        return None if word.startswith("-") else self.sides.get(normal_name(word))

    def unclear_error(self, values: Iterable[str]) -> UserError:
        """The error for preferences that name neither answer, with the setting that says what each of them means."""
        column, a, b = (str(self.names[role]) for role in ("preference", "a", "b"))
        ordered = sorted(values)[:MAX_SHOWN]
        words = ", ".join(f"{value}: WORD" for value in ordered) + ", …" * (len({*values}) > MAX_SHOWN)
        return UserError(
            f"{column} holds {', '.join(ordered)}, and not all of these name {a}, {b} or a tie. {self.setting}="
            f"{{{words}}} says what they mean: each WORD is left ({a} is better), right ({b}) or tie."
        )

    def read_preference(self, value: Any) -> float:
        if isinstance(value, list):
            a, b = map(parse_number, value)
            return 0.5 if a == b else float(a > b)
        word = label_word(value)
        if (score := self.first_score(word)) is None:
            if NUMBER.fullmatch(word):
                raise self.unclear_error({*self.values, word})
            raise BadRow("preference", f"names neither answer, nor a tie: {value!r:.40}")
        return score

    def remarks(self) -> list[str]:
        """Which answer every preference was read as."""
        column, a, b = (self.names[role] for role in ("preference", "a", "b"))
        if isinstance(column, list):
            return [*super().remarks(), f"the higher one of {' and '.join(column)} was read as better"]
        sides = ((1.0, f"{a} better"), (0.0, f"{b} better"), (0.5, "a tie"))
        readings = [
            f"{value} was read as {side} ({rows:,} rows)"
            for score, side in sides
            for value, rows in sorted(self.values.items())
            if self.first_score(value) == score
        ]
        return [*super().remarks(), f"{column}: {', '.join(readings)}"]

    def read_conversation(self, row: Mapping[str, Any]) -> list[Message]:
        if interleave(row.get("prompt"), row.get("a")):
            row = {**row, "prompt": only_text(parse_cell(row["prompt"]), "prompt")}
        return super().read_conversation(row)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        score = self.read_preference(row["preference"])
        turns = [interleave(row.get("prompt"), row[side]) for side in ("a", "b")]
        if all(turns):
            row = {**{role: value for role, value in row.items() if role != "prompt"}, "a": turns[0], "b": turns[1]}
        if "prompt" in row or "messages" in row:
            prompt = self.read_prompt(row)
            a, b = (self.read_answer(row[side], side, prompt) for side in ("a", "b"))
        else:
            row = {**row, **{side: up_to_turn(row[side], row.get("turn")) for side in ("a", "b")}}
            (prompt, a), (other_prompt, b) = (self.read_whole(row, side) for side in ("a", "b"))
            if prompt != other_prompt:
                raise BadRow("b", "answers another prompt than a: what was said before differs, too")
        if a == b:
            raise BadRow("b", "is the same as a")
        if not isinstance(row["preference"], list):  # of scores, nearly as many as rows
            self.values[label_word(row["preference"])] += 1
        return ParsedRow(prompt, [a, b], [score, 1 - score])


def up_to_turn(turns: Any, last: Any) -> Any:
    """A conversation up to the answer that was compared, the first or the second, as MT-bench's judges did."""
    if not isinstance(last, int) or not isinstance(turns, list):
        return turns
    answers = [
        i for i, turn in enumerate(turns) if isinstance(turn, dict) and first_value(turn, ROLE_KEYS) == "assistant"
    ]
    return turns[: answers[last - 1] + 1] if 0 < last < len(answers) else turns


def interleave(requests: Any, answers: Any) -> list[Any] | None:
    """The turns in two lists, of requests and of the answers to each, as LMSYS has them in JSON."""
    requests, answers = parse_cell(requests), parse_cell(answers)
    if not isinstance(requests, list) or not isinstance(answers, list) or len(requests) != len(answers):
        return None
    if not all(content is None or isinstance(content, str) for content in (*requests, *answers)):
        return None
    return [turn or "" for pair in zip(requests, answers, strict=True) for turn in pair]
