"""A JSON array read row by row gives the same rows and errors as one read at once."""

import io
import json
from pathlib import Path

import pytest

from stages.config.blocks.data import ReadLimits
from stages.formats.readers.content import Content
from stages.formats.readers.json_text import array_rows
from stages.formats.readers.row import Row

FILE = Path("rows.json")


def read(content: bytes) -> list[Row]:
    return list(array_rows(Content(FILE, io.BytesIO(content), b"[", ReadLimits())))


@pytest.mark.parametrize(
    "rows", [[], [None, -12, 1.5e-7, 10**30, True, "a,]\n\u2028é😀"], [{"a": [1, {"b": "}"}]}, []]]
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_are_those_of_the_whole_array(rows: list[object], indent: int | None) -> None:
    text = "\ufeff" + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n"
    assert [(row.line, row.value, row.error) for row in read(text.encode())] == [
        (i, row, None) for i, row in enumerate(rows, 1)
    ]
