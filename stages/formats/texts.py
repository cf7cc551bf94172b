"""Running text without a request."""

from collections.abc import Mapping
from typing import Any

from stages.formats.format import Format, ParsedRow, roles_of
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import find_mark
from stages.formats.turns import require_text


class Texts(Format):
    roles = roles_of(text="text")
    needs = ("text",)

    def remarks(self) -> list[str]:
        """Return the notes of a format, and how SFT trains running text."""
        note = "each row is running text. SFT trains it whole, with BOS and end of text, without chat marks"
        return [note, *super().remarks()]

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        content = require_text(row["text"], "text")
        if mark := find_mark(content):
            raise BadRow(
                "text",
                f"holds {mark!r}: this mark of a chat template does not belong in running text. Give the turns as "
                "messages: [{role: user, content: …}, …]",
            )
        return ParsedRow([], [content])
