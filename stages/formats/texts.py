"""Running text without a request."""

from collections.abc import Mapping
from typing import Any

from stages.config.blocks.data import Source
from stages.formats.format import Format, ParsedRow, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import find_mark
from stages.formats.turns import AS_TEXT, require_text


class Texts(Format):
    roles = roles_of(text="text")
    needs = ("text",)

    def __init__(self, source: Source):
        super().__init__(source)
        self.is_named = source.format == "texts"  # by the user, who means the marks as text

    def remarks(self) -> list[str]:
        """Return the notes of a format, and how SFT trains running text."""
        note = "each row is running text. SFT trains it whole, with BOS and end of text, without chat marks"
        return [note, *super().remarks()]

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        content = require_text(row["text"], "text")
        mark = None if self.is_named else find_mark(content)
        if mark:
            raise BadRow("text", f"holds {mark!r}, a mark of turns that are not read", AS_TEXT)
        return ParsedRow([], [content])
