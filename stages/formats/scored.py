"""Rows with several answers that have scores or ranks (UltraFeedback, Nectar), or with one answer and its score."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from types import UnionType
from typing import Any

from stages.config.blocks.data import Source
from stages.config.installation import read_beside
from stages.formats.columns import nested_keys, value_at
from stages.formats.format import CONTEXT, PROMPT, TURNS, Format, ParsedRow, roles_of
from stages.formats.readers.row import BadRow, Way
from stages.formats.turns import is_blank, messages, require_list

NAMES = read_beside(__file__)
MAX_SHOWN = 3  # values in a note
MAX_ERROR = 60  # characters of the values in an error
WORD = re.compile(r"\D*")  # N/A, unrated, ?: no number, and no part of one such as 4/5
INFINITE = re.compile(r"\s*[+-]?inf(inity)?\s*", re.IGNORECASE)
LARGEST = 1e300  # of a rating: differences of larger ones may be infinite


class Scored(Format):
    roles = roles_of(PROMPT, CONTEXT, **NAMES["columns"])
    needs: tuple[str, ...] = ("prompt", "completions")
    models = NAMES["models"]
    compares = True

    def __init__(self, source: Source):
        super().__init__(source)
        # answers without a score of the rows so far, by what they have in its place
        self.unscored = Counter[str]()

    def fits(self, row: Mapping[str, Any]) -> bool:
        answers = row["completions"]
        if isinstance(answers, str):  # each answer to a request has its own row
            return isinstance(row.get("scores"), int | float | str)
        if not isinstance(answers, list) or len(answers) < 2:
            return False
        return "completions" in self.split_objects(answers)

    def split_objects(self, objects: list[Any]) -> dict[str, list[Any]]:
        """Return the lists of texts, scores and ranks in a list of objects."""
        if not all(isinstance(item, dict) for item in objects):
            return {"completions": objects}
        lists: dict[str, list[Any]] = {}
        for role, keys in NAMES["keys"].items():
            if key := next(
                (key for key in keys.split() if all(key in each for each in objects)), None
            ):
                lists[role] = [each[key] for each in objects]
        return lists

    def split_completions(self, completions: Any) -> dict[str, list[Any]]:
        """Return the lists in a row's completions; raise BadRow if there are no texts."""
        lists = self.split_objects(require_list(completions, "completions"))
        if "completions" not in lists:
            texts = keys_of(completions, str)
            ways = [Way({"columns": {"completions": f"COLUMN.{key}"}}) for key in texts[:1]]
            raise BadRow("completions", "holds objects without a known text", *ways)
        return lists

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        one = isinstance(row["completions"], str)  # each answer to a request has its own row
        lists = self.split_completions([row["completions"]] if one else row["completions"])
        own = {role: row[role] for role in ("scores", "ranks") if role in row}
        lists |= {
            role: [value] if one else require_list(value, role) for role, value in own.items()
        }
        if "scores" not in lists and "ranks" not in lists:
            raise BadRow("scores", "the answers have no scores")
        by_rank = "scores" not in lists
        completions, values = self.scored_completions(lists, "ranks" if by_rank else "scores")
        scores = [parse_number(value) for value in values]
        if by_rank:  # 1 is the best
            low, high = min(scores), max(scores)
            scores = [(high - rank) / (high - low or 1.0) for rank in scores]
        prompt = self.read_prompt(row)
        answers = [
            self.read_answer(completion, "completions", prompt) for completion in completions
        ]
        # ranks order one row's answers
        return ParsedRow(messages(prompt), answers, scores, graded=not by_rank)

    def scored_completions(
        self, lists: Mapping[str, list[Any]], role: str
    ) -> tuple[list[Any], list[Any]]:
        """Return the answers that have a score, or a rank, and these values; count the others."""
        answers, values = lists["completions"], lists[role]
        if len(values) != len(answers):
            raise BadRow("scores", f"{len(values)} scores for {len(answers)} answers")
        scored = [i for i, value in enumerate(values) if not is_missing(value)]
        if len(scored) < min(2, len(values)):
            shown = ", ".join(map(repr, values))[:MAX_ERROR]
            raise BadRow("scores", f"{len(scored)} of {len(values)} answers have a score: {shown}")
        for value in values:
            if is_missing(value):
                self.unscored[str(value)] += 1
        return [answers[i] for i in scored], [values[i] for i in scored]

    def remarks(self) -> list[str]:
        """Return the notes for the user, with the number of answers that have no score."""
        if not self.unscored:
            return super().remarks()
        values = ", ".join(value or "nothing" for value, _ in self.unscored.most_common(MAX_SHOWN))
        note = f"{self.unscored.total():,} answers without a score were left out ({values} in its place)"
        return [*super().remarks(), note]


def is_missing(value: Any) -> bool:
    """Return True for a blank, for the NaN that pandas writes for one, and for a word such as N/A."""
    if is_blank(value):
        return True
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None and not INFINITE.fullmatch(value)
    return isinstance(value, float) and math.isnan(value)


def flattened(value: Any) -> list[Any]:
    """Return the items of nested lists in one list."""
    if not isinstance(value, list):
        return [value]
    return [inner for item in value for inner in flattened(item)]


def keys_of(objects: Any, kind: type | UnionType) -> list[str]:
    """Return the keys under which all objects of a list have a value of this kind, the longest values first."""
    keys = list[str]()
    for key in nested_keys(objects):
        values = [value for value in flattened(value_at(objects, key)) if value is not None]
        if values and all(isinstance(value, kind) for value in values):
            keys.append(key)
    return sorted(keys, key=lambda key: -len(str(value_at(objects, key))))


def parse_number(value: Any) -> float:
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRow("scores", f"must be numbers, but one is {value!r:.40}") from None
    if not abs(parsed) < LARGEST:
        raise BadRow("scores", f"must be numbers below {LARGEST:g}")
    return parsed


class Several(Scored):
    """Rows with a request and several answers without scores: candidates to be labelled."""

    roles = roles_of(
        TURNS, PROMPT, CONTEXT, completions=f"{Scored.roles['completions']} generation"
    )
    needs = ("completions",)
    compares = False

    def fits(self, row: Mapping[str, Any]) -> bool:
        answers = row["completions"]
        return isinstance(answers, list) and "completions" in self.split_objects(answers)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        lists = self.split_completions(row["completions"])
        prompt = self.read_prompt(row)
        answers = [self.read_answer(text, "completions", prompt) for text in lists["completions"]]
        return ParsedRow(messages(prompt), answers)
