"""Rows with a request and several answers without scores: candidates to be labelled."""

from collections.abc import Iterable, Mapping
from typing import Any

from stages.formats.columns import Path
from stages.formats.format import CONTEXT, PROMPT, TURNS, ParsedRow, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.scored import Scored
from stages.formats.turns import require_list


class Several(Scored):
    roles = roles_of(TURNS, PROMPT, CONTEXT, completions=Scored.roles["completions"])
    needs = ("completions",)
    compares = False

    def fits(self, row: Mapping[str, Any]) -> bool:
        answers = row["completions"]
        texts = isinstance(answers, list) and all(isinstance(item, str) for item in answers)
        return texts or (isinstance(answers, list) and "completions" in self.split_objects(answers))

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:
        """Do nothing, since there are no scores to learn."""

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        lists = self.split_objects(require_list(row["completions"], "completions"))
        if "completions" not in lists:
            raise BadRow("completions", "holds objects without a text: type `columns: {completions: COLUMN.KEY}`")
        messages = self.read_prompt(row)
        return ParsedRow(messages, [self.read_answer(text, "completions", messages) for text in lists["completions"]])
