"""A JSON array read in pieces gives the same rows and errors as one read at once, wherever the pieces end."""

import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.readers import json_array
from stages.formats.readers.json_array import array_rows
from stages.formats.readers.json_lines import BoundedLines
from stages.formats.readers.row import Row

FILE = Path("rows.json")
CHARACTERS = 'ab "\\\n,:[]{}é😀\u2028'


def value(rng: random.Random, depth: int = 0) -> Any:
    """Draw a JSON value, with numbers of which a part is a number too, and texts with brackets and quotes."""
    kind = rng.choice(["number", "word", "text", "text", "list", "object"][: 6 if depth < 3 else 4])
    if kind == "list":
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == "object":
        return {f"{i}{rng.choice(CHARACTERS)}": value(rng, depth + 1) for i in range(rng.randrange(4))}
    text = "".join(rng.choices(CHARACTERS, k=rng.randrange(9)))
    return {"number": rng.choice([0, -12, 1.5e-7, 10**30]), "word": rng.choice([None, True]), "text": text}[kind]


def read(content: bytes, piece: int, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    monkeypatch.setattr(json_array, "PIECE", piece)
    return list(array_rows(FILE, BoundedLines(io.BytesIO(content), 1, FILE, 64)))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 40, 1 << 20])
def test_rows_are_those_of_the_whole_array_wherever_pieces_end(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(piece)
    for _ in range(150):
        rows = [value(rng) for _ in range(rng.randrange(5))]
        text = json.dumps(rows, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
        result = read(rng.choice(["", "\ufeff"]).encode() + text.encode(), piece, monkeypatch)
        assert [(row.line, row.value, row.error) for row in result] == [
            (i, row, None) for i, row in enumerate(rows, 1)
        ]


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize("end", ["", "]", "}", ",", '"', "]]", "x", " 1]"])
def test_a_broken_array_is_told_as_one_that_is_read_at_once(
    end: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.dumps([{"a": "é,]", "b": [1, {"c": "d"}]}, {"a": 1.5e-7}], indent=1)
    for cut in range(1, len(whole)):
        text = whole[:cut] + end
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(UserError) as raised:
                read(text.encode(), piece, monkeypatch)
            assert str(raised.value).startswith(f"{FILE}: line {error.lineno}: {error.msg}. Mend the array"), text
        else:
            read(text.encode(), piece, monkeypatch)


@pytest.mark.parametrize("piece", [1, 6, 1 << 20])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"a": [1, {"b": "]", "b": 2}]}', "b: broken JSON: the key occurs twice"),
        ('{"a": NaN, "b": "}, {"}', "broken JSON: NaN is not a number"),
        ("[" * 5000 + "]" * 5000, "broken JSON: nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', "broken JSON: a number with too many digits"),
    ],
)
def test_a_row_that_cannot_be_held_costs_that_row(
    bad: str, reason: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = max(piece, len(bad) // 9)
    first, bad_row, last = read(f'[{{"a": 1}}, {bad} ,\n 2]'.encode(), piece, monkeypatch)
    assert (first.value, first.error, last.value, last.error) == ({"a": 1}, None, 2, None)
    assert (bad_row.line, bad_row.value) == (2, bad)
    assert str(bad_row.error).startswith(reason)


@pytest.mark.parametrize("piece", [1, 4, 1 << 20])
def test_bytes_that_are_no_text_are_told_with_their_line(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"rows.json: line 3: .* Windows-1252: iconv"):
        read('["é",\n"ö",\n"a'.encode() + b"\xe4" + b'"]', piece, monkeypatch)


def test_a_long_array_is_not_held() -> None:
    row = json.dumps({"instruction": "Say it.", "output": "many words " * 90})
    content = f"[{', '.join([row] * 9000)}]".encode()
    tracemalloc.start()
    try:
        count = sum(1 for _ in array_rows(FILE, BoundedLines(io.BytesIO(content), 1, FILE, 64)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 9000
    assert peak < 5 * json_array.PIECE < len(content)
