"""Rows with two answers and a preference between them: `output_1`, `output_2` and `preference`."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stages.config.errors import UserError
from stages.config.override_text import override
from stages.formats.columns import Path, label_word, normal_name, parse_cell
from stages.formats.format import (
    CONTEXT,
    PROMPT,
    TURNS,
    Format,
    ParsedRow,
    is_turns,
    only_text,
    roles_of,
)
from stages.formats.readers.row import BadRow, Way
from stages.formats.scored import parse_number
from stages.formats.turns import Turn

ANSWER = re.compile(
    r"(model_|human_)?(output|response|answer|completion|generation|conversation|reply|ref)_?"
)
# ends of the columns' names: the first answer's, and the second's
SIDES = {"1": "2", "a": "b", "0": "1"}
PREFERENCE = "preference preferred winner better better_response_id majority choice verdict label labels chosen"
# columns with a number for each answer, higher is better
SCORES = "score rating reward winner_model"
MAX_SHOWN = 9  # values in an error
# of the numbers that a word of `labels` stands for
BORDER = re.compile(r"(below|above) (-?\d+(?:\.\d+)?)")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
TIES = ("tie", "both", "same", "equal", "tie_bothbad", "both_bad", "neither", "draw")


class Compared(Format):
    roles = roles_of(TURNS, PROMPT, CONTEXT, a="", b="", preference=PREFERENCE, turn="turn")
    needs = ("a", "b", "preference")
    models = "model_a+model_b"
    compares = True

    def role_names(self, columns: Collection[str]) -> Mapping[str, str]:
        names = {*map(normal_name, columns)}
        for a in sorted(names):
            for first_end, second_end in SIDES.items():
                b = a.removesuffix(first_end) + second_end
                # If there is a third answer, the preference is not between two.
                third = a.removesuffix(first_end) + chr(ord(second_end) + 1)
                is_pair = b in names and third not in names
                if (
                    a.endswith(first_end)
                    and is_pair
                    and ANSWER.fullmatch(a.removesuffix(first_end))
                ):
                    pairs = " ".join(
                        f"{name}_{first_end}+{name}_{second_end}" for name in SCORES.split()
                    )
                    return {**self.roles, "a": a, "b": b, "preference": f"{PREFERENCE} {pairs}"}
        return self.roles

    def fits(self, row: Mapping[str, Any]) -> bool:
        whole = is_turns(row["a"]) and is_turns(row["b"])
        return whole or (isinstance(row["a"], str) and ("prompt" in row or "messages" in row))

    def learn(
        self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str
    ) -> None:
        self.names, self.setting, self.values = names, labels, Counter[str]()
        a, b = (normal_name(str(names[side])) for side in ("a", "b"))
        first_end, second_end = (a[-1], b[-1]) if SIDES.get(a[-1:]) == b[-1:] else ("1", "2")
        self.sides = dict.fromkeys((a, f"model_{a[-1]}"), 1.0) | dict.fromkeys(
            (b, f"model_{b[-1]}"), 0.0
        )
        self.sides |= {first_end: 1.0, second_end: 0.0, "left": 1.0, "right": 0.0} | dict.fromkeys(
            TIES, 0.5
        )
        if (first_end, second_end) == ("1", "2"):
            self.sides["1_5"] = 0.5
        if isinstance(names["preference"], str):
            values = {
                label_word(row.get("preference"))
                for row in rows
                if not isinstance(row.get("preference"), list)
            } - {""}
            if any(self.first_score(value) is None for value in values):
                raise self.unclear_error(values)

    def first_score(self, value: str) -> float | None:
        """Return the score of the first answer: 1 if preferred, 0 if not, 0.5 for a tie, None if the word is unknown.
        A number means the answer whose column has that number. Data sets differ in whether 0 is the first answer or a
        tie, so other numbers need the setting `labels`."""
        word = self.labels.get(value) or word_beyond_border(value, self.labels) or value
        return None if word.startswith("-") else self.sides.get(normal_name(word))

    def unclear_error(self, values: Iterable[str]) -> UserError:
        """Return the error for preferences that name neither answer, with the setting that explains them."""
        column, a, b = (str(self.names[role]) for role in ("preference", "a", "b"))
        ordered = sorted({*values}, key=in_order)
        shown = ", ".join(ordered[:MAX_SHOWN]) + ", …" * (len(ordered) > MAX_SHOWN)
        problem = (
            f"{column} holds {shown}, and some of these values name neither {a}, {b} nor a tie"
        )
        unclear = [v for v in ordered if self.first_score(v) is None or NUMBER.fullmatch(v)]
        guesses = [override(self.setting, words) for words in guessed_words(unclear)]
        if not guesses:
            return UserError(
                f"{problem}. No setting reads so many words: write left ({a} is better), right or tie in their place."
            )
        meaning = f"with left ({a} is better), right ({b} is better) or tie for each value"
        return UserError(f"{problem}. Type {' or '.join(guesses)}, {meaning}.")

    def read_preference(self, value: Any) -> float:
        if isinstance(value, list):
            if len(value) != 2:
                raise BadRow(
                    "preference", f"has {len(value)} values for two answers: {value!r:.40}"
                )
            a, b = map(parse_number, value)
            return 0.5 if a == b else float(a > b)
        word = label_word(value)
        if (score := self.first_score(word)) is None:
            if NUMBER.fullmatch(word):
                raise self.unclear_error({*self.values, word})
            ways = [Way({"labels": {word: side}}) for side in ("left", "right", "tie")]
            raise BadRow("preference", f"{value!r:.40} names neither answer nor a tie", *ways)
        return score

    def remarks(self) -> list[str]:
        """Return notes for the user on how each preference was read."""
        column, a, b = (self.names[role] for role in ("preference", "a", "b"))
        if isinstance(column, list):
            return [
                *super().remarks(),
                f"the answer with the higher of {' and '.join(column)} was read as better",
            ]
        sides = ((1.0, f"{a} better"), (0.0, f"{b} better"), (0.5, "a tie"))
        readings = [
            f"{value} was read as {side} ({rows:,} rows)"
            for score, side in sides
            for value, rows in sorted(self.values.items())
            if self.first_score(value) == score
        ]
        return [*super().remarks(), f"{column}: {', '.join(readings)}"]

    def read_conversation(self, row: Mapping[str, Any]) -> list[Turn]:
        if interleave(row.get("prompt"), row.get("a")):
            row = {**row, "prompt": only_text(parse_cell(row["prompt"]), "prompt")}
        return super().read_conversation(row)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        score = self.read_preference(row["preference"])
        turns = [interleave(row.get("prompt"), row[side]) for side in ("a", "b")]
        if all(turns):
            row = {
                **{role: value for role, value in row.items() if role != "prompt"},
                "a": turns[0],
                "b": turns[1],
            }
        if "prompt" in row or "messages" in row:
            prompt = self.read_prompt(row)
            sides = {side: self.read_continuation(row, side, prompt) for side in ("a", "b")}
        else:
            sides = {
                side: up_to_turn(self.read_whole(row, side), row.get("turn")) for side in ("a", "b")
            }
            if "turn" in row and sides["a"][:-1] != sides["b"][:-1]:  # this turn alone was compared
                raise BadRow(
                    "b",
                    "answers another prompt than a: the turns before the last answer differ, too",
                )
        parsed = self.compared_row(sides, [score, 1 - score])
        if not isinstance(row["preference"], list):  # pairs of scores have too many values to count
            self.values[label_word(row["preference"])] += 1
        return parsed


def word_beyond_border(value: str, labels: Mapping[str, str]) -> str | None:
    """Return the word of labels for a number on one side of a border, as in `{below 0: left, above 0: right}`."""
    if not NUMBER.fullmatch(value):
        return None
    for label, word in labels.items():
        border = BORDER.fullmatch(label)
        if border:
            distance = float(value) - float(border[2])
            if (distance < 0 and border[1] == "below") or (distance > 0 and border[1] == "above"):
                return word
    return None


def in_order(value: str) -> tuple[bool, float, str]:
    """Return the place of a value among others: numbers first, by size."""
    is_number = NUMBER.fullmatch(value) is not None
    return not is_number, float(value) if is_number else 0.0, value


def guessed_words(values: list[str]) -> list[dict[str, str]]:
    """Return guesses at what ordered values mean, one the reverse of the other: the halves of few values, or numbers on
    both sides of a border. [] for more words than can be typed."""
    if len(values) == 1:
        return [{values[0]: side} for side in ("left", "right", "tie")]
    half = len(values) // 2
    low, middle, high = (
        values[:half],
        values[half : len(values) - half],
        values[len(values) - half :],
    )
    numbers = [float(value) for value in values if NUMBER.fullmatch(value)]
    has_both_signs = len(numbers) == len(values) and numbers[0] < 0 < numbers[-1]
    if has_both_signs or len(values) > MAX_SHOWN:
        if len(numbers) < len(values):
            return []
        border = 0 if has_both_signs else (numbers[0] + numbers[-1]) / 2
        if numbers[0] >= 0 and numbers[-1] <= 1:  # a share
            border = 0.5
        low, middle, high = [f"below {border:g}"], [f"{border:g}"], [f"above {border:g}"]
    return [
        dict.fromkeys(low, first) | dict.fromkeys(middle, "tie") | dict.fromkeys(high, second)
        for first, second in (("left", "right"), ("right", "left"))
    ]


def up_to_turn(turns: list[Turn], last: Any) -> list[Turn]:
    """Return a conversation up to the answer that was compared: the first or second, as in MT-bench's judgements."""
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    is_earlier = isinstance(last, int) and 0 < last < len(answers)
    return turns[: answers[last - 1] + 1] if is_earlier else turns


def interleave(requests: Any, answers: Any) -> list[Any] | None:
    """Return the turns of a list of requests and a list of their answers, as LMSYS writes them in JSON; else None."""
    requests, answers = parse_cell(requests), parse_cell(answers)
    if (
        not isinstance(requests, list)
        or not isinstance(answers, list)
        or len(requests) != len(answers)
    ):
        return None
    if not all(content is None or isinstance(content, str) for content in (*requests, *answers)):
        return None
    return [turn or "" for pair in zip(requests, answers, strict=True) for turn in pair]
