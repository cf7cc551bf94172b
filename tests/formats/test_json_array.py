"""A JSON array read row by row gives the same rows and errors as one read at once."""

import io
import json
from pathlib import Path

import pytest

from stages.config.blocks.data import ReadLimits
from stages.config.errors import UserError
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


@pytest.mark.parametrize("end", ["", "]", "}", ",", '"', "]]", "x", " 1]"])
def test_a_broken_array_is_told_as_one_that_is_read_at_once(end: str) -> None:
    whole = json.dumps([{"a": "é,]", "b": [1, {"c": "d"}]}, {"a": 1.5e-7}], indent=1)
    for cut in range(1, len(whole)):
        text = whole[:cut] + end
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(UserError) as raised:
                read(text.encode())
            assert str(raised.value).startswith(
                f"{FILE}: line {error.lineno}: {error.msg}. Mend the array"
            ), text
        else:
            read(text.encode())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"a": [1, {"b": "]", "b": 2}]}', "b: broken JSON: the key occurs twice"),
        ('{"a": NaN, "b": "}, {"}', "broken JSON: NaN is not a number"),
        (f'{{"a": {"9" * 5000}}}', "broken JSON: a number with too many digits"),
    ],
)
def test_a_row_that_cannot_be_held_costs_that_row(bad: str, reason: str) -> None:
    first, bad_row, last = read(f'[{{"a": 1}}, {bad} ,\n 2]'.encode())
    assert (first.value, first.error, last.value, last.error) == ({"a": 1}, None, 2, None)
    assert (bad_row.line, bad_row.value) == (2, bad)
    assert str(bad_row.error).startswith(reason)


def test_deep_nesting_costs_that_row() -> None:
    deep = '{"a": "[", "b": ' + "[" * 5000 + "]" * 5000 + "}"
    first, deep_row, last = read(f"[1, {deep}, 2]".encode())
    assert (first.value, deep_row.value, last.value) == (1, deep, 2)
    assert str(deep_row.error) == "broken JSON: nested too deeply"
    with pytest.raises(UserError, match=r"rows.json: line 1: .*delimiter"):
        read(b"[1, " + b"[" * 5000)


def test_bytes_that_are_no_text_are_told_with_their_line() -> None:
    with pytest.raises(UserError, match=r"rows.json: line 3: .* Windows-1252: iconv"):
        read('["é",\n"ö",\n"a'.encode() + b"\xe4" + b'"]')
