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

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        content = require_text(row["text"], "text")
        if mark := find_mark(content):
            raise BadRow(
                "text",
                f"holds {mark!r}: this mark of a chat template does not belong in running text. Give the turns as "
                "messages: [{role: user, content: …}, …]",
            )
        return ParsedRow([], [content])
