"""A request with several answers that nobody judged: candidates."""

from collections.abc import Iterable, Mapping
from typing import Any

from stages.formats.columns import Path
from stages.formats.format import ASKED, BEFORE, TURNS, ParsedRow, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.scored import Scored
from stages.formats.turns import listed


class Several(Scored):
    roles = roles_of(TURNS, ASKED, BEFORE, completions=Scored.roles["completions"])
    needs = ("completions",)
    compares = False

    def fits(self, row: Mapping[str, Any]) -> bool:
        given = row["completions"]
        texts = isinstance(given, list) and all(isinstance(each, str) for each in given)
        return texts or (isinstance(given, list) and "completions" in self.parts(given))

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:
        """Nothing: there are no scores to be understood."""

    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        parts = self.parts(listed(row["completions"], "completions"))
        if "completions" not in parts:
            raise BadRow("completions", "holds objects without a text: `columns: {completions: COLUMN.KEY}` names it")
        messages = self.request(row)
        return ParsedRow(messages, [self.answer(each, "completions", messages) for each in parts["completions"]])
