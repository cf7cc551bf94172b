"""Several answers to a request with scores or ranks: UltraFeedback, Nectar, lists beside lists, or a row for each."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from stages.config.errors import UserError
from stages.formats.columns import Path
from stages.formats.format import ASKED, BEFORE, Format, ParsedRow, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.turns import listed

# Of a list of objects, what each says under which of these keys.
WITHIN = {
    "completions": "response output text answer completion content generation solution",
    "scores": "overall_score score pm_score rating reward is_correct",
    "ranks": "rank",
}


class Scored(Format):
    roles = roles_of(
        ASKED,
        BEFORE,
        completions="completions candidates responses answers outputs generations samples responses_and_scores",
        scores="scores ratings rewards",
        ranks="ranks rank ranking",
    )
    needs: tuple[str, ...] = ("prompt", "completions")
    compares = True

    def fits(self, row: Mapping[str, Any]) -> bool:
        given = row["completions"]
        if isinstance(given, str):  # one answer of several, which have rows of their own
            return isinstance(row.get("scores"), int | float)
        if not isinstance(given, list) or len(given) < 2:
            return False
        return all(isinstance(each, str) for each in given) or "completions" in self.parts(given)

    def parts(self, given: list[Any]) -> dict[str, list[Any]]:
        """The lists of texts, of scores and of ranks in a list of objects."""
        if not all(isinstance(each, dict) for each in given):
            return {"completions": given}
        found: dict[str, list[Any]] = {}
        for role, keys in WITHIN.items():
            if key := next((key for key in keys.split() if all(key in each for each in given)), None):
                found[role] = [each[key] for each in given]
        return found

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:
        row = next(iter(rows))
        parts = {**self.parts(row["completions"]), **row}
        if not {"scores", "ranks"} & parts.keys():
            column = names["completions"]
            keys = next((", ".join(each) for each in row["completions"] if isinstance(each, dict)), "")
            holds, path = (keys, f"{column}.KEY") if keys else ("text alone", "COLUMN")
            raise UserError(
                f"{column} holds {holds}: which is better? `columns: {{scores: {path}}}` says it, or ranks, where 1 "
                "is the best."
            )

    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        given = [row["completions"]] if isinstance(row["completions"], str) else row["completions"]
        parts = {**self.parts(listed(given, "completions")), **row_lists(row)}
        if "completions" not in parts:
            raise BadRow("completions", "holds objects without a text: `columns: {completions: COLUMN.KEY}` names it")
        if "scores" not in parts and "ranks" not in parts:
            raise BadRow("scores", "the answers have none: `columns: {scores: COLUMN.KEY}` names them")
        by_rank = "scores" not in parts
        scores = [number(each) for each in parts["ranks" if by_rank else "scores"]]
        if len(scores) != len(parts["completions"]):
            raise BadRow("scores", f"{len(scores)} for {len(parts['completions'])} answers")
        if by_rank:  # 1 is the best
            low, high = min(scores), max(scores)
            scores = [(high - each) / (high - low or 1.0) for each in scores]
        messages = self.request(row)
        answers = [self.answer(each, "completions", messages) for each in parts["completions"]]
        return ParsedRow(messages, answers, scores, graded=True)


def row_lists(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Scores and ranks that stand in columns of their own."""
    given = {role: row[role] for role in ("scores", "ranks") if role in row}
    return {r: [each] if isinstance(each, int | float) else listed(each, r) for r, each in given.items()}


def number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadRow("scores", f"must be numbers, one is {value!r:.40}") from None
    if not math.isfinite(found):
        raise BadRow("scores", "must be numbers, one is none")
    return found
