"""Files of every kind, packed in every way, hold the same rows."""

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.errors import UserError
from stages.formats.files import rows_of
from tests.formats.reading import read, said

ROWS = [{"instruction": "a\u2028b, c", "output": 'd "e"\nf'}, {"instruction": "ä", "output": "g"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["instruction", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def written(write: Callable[[pa.Table, pa.BufferOutputStream], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def stream(rows: pa.Table, sink: pa.BufferOutputStream) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)


def file(rows: pa.Table, sink: pa.BufferOutputStream) -> None:
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


CONTENTS = {
    "lines.jsonl": LINES.encode(),
    "lines.json": ("\ufeff" + LINES.replace("\n", "\r\n")).encode(),
    "lines.txt": LINES.encode(),
    "lines": LINES.encode(),
    "array.jsonl": json.dumps(ROWS, indent=2).encode(),
    "array.json": ("\ufeff" + json.dumps(ROWS)).encode(),
    "table.csv": table(","),
    "bom.csv": b"\xef\xbb\xbf" + table(","),
    "semicolons.csv": table(";"),
    "table.tsv": table("\t"),
    "table.parquet": written(pq.write_table),
    "parquet.bin": written(pq.write_table),
    "stream.arrow": written(stream),
    "file.arrow": written(file),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_is_told_by_what_it_holds(name: str, packed: str, tmp_path: Path) -> None:
    if packed and CONTENTS[name][:4] in (b"PAR1", b"ARRO", b"\xff\xff\xff\xff"):
        pytest.skip("these are packed inside")
    path = tmp_path / (name + packed)
    path.write_bytes(PACKED[packed](CONTENTS[name]))
    assert [row.value for row in rows_of(path)] == ROWS
    assert said(read(path))[1] == (["ä"], ["g"], None)


@pytest.mark.parametrize("packed", [name for name in PACKED if name])
def test_a_packed_file_that_is_cut_off_is_told(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.jsonl{packed}"
    whole = PACKED[packed](LINES.encode() * 99)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read, it is broken or cut off"):
        list(rows_of(path))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.json", json.dumps({"data": ROWS, "version": 1}, indent=1), r"one JSON object .* jq -c '\.data\[\]'"),
        ("rows.json", json.dumps({"1": ROWS[0]}, indent=1), r"one JSON object .* jq -c '\.\[\]'"),
        ("rows.csv", b"PK\x03\x04 a workbook", "is a zip archive or a workbook"),
        ("rows.csv", "instruction,output\n".encode("utf-16"), "is UTF-16. Save it as UTF-8"),
        ("rows.txt", "a\n\nb\nc", r"`documents` of the source says it: file \(1\).*paragraphs \(2\), lines \(3\)"),
    ],
)
def test_what_has_no_rows_is_refused_with_a_way_out(
    name: str, content: str | bytes, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=told):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "line", ['{"a": "b', '{"a": "\u00e9', '{"a" 1}', '{"a": 1} x', "\x0b{}", "{}\x0c", "[1,]", "nul"]
)
def test_a_broken_line_is_told_as_the_decoder_tells_it(line: str, tmp_path: Path) -> None:
    """Also where its end, which is no part of JSON, is in a string that was not closed."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(f"{json.dumps(ROWS[0])}\r\n {line}\r\n".encode())
    with pytest.raises(json.JSONDecodeError) as told:
        json.loads(f" {line}\r")
    first, row = rows_of(file)
    assert (first.value, row.line, row.value) == (ROWS[0], 2, f" {line}\r")
    assert str(row.error) == f"broken JSON: {told.value.msg}"


def test_plain_text_is_divided_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a\r\nb\r\n\r\nc\r\n\r\n\r\nd\r\n", newline="")
    divided = {"file": ["a\nb\n\nc\n\n\nd"], "sections": ["a\nb\n\nc", "d"], "paragraphs": ["a\nb", "c", "d"]}
    for documents, texts in {**divided, "lines": list("abcd")}.items():
        assert [each.answers[0] for each in read(path, documents=documents).made] == texts


def test_labels_that_datasets_wrote_as_numbers_have_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    made = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    made.to_parquet(tmp_path / "rows.parquet")
    made.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved"):
        found = read(path, columns={"prompt": "text", "completion": "label"})
        assert said(found) == [(["a"], ["pos"], None), (["b"], ["neg"], None)]


def test_a_table_is_read_in_groups_of_rows(tmp_path: Path) -> None:
    rows = pa.table({"instruction": [str(i) for i in range(5000)], "output": ["b"] * 5000})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=700)
    assert [row.line for row in rows_of(tmp_path / "rows.parquet")] == list(range(1, 5001))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv"])
def test_a_file_in_windows_1252_is_told_with_the_command_that_converts_it(name: str, tmp_path: Path) -> None:
    row = {"instruction": "Größe?", "output": "5 €"}
    text = {".jsonl": f"{json.dumps(row, ensure_ascii=False)}\n", ".json": json.dumps([row], ensure_ascii=False)}
    file = tmp_path / name
    file.write_bytes(text.get(file.suffix, "instruction,output\nGröße?,5 €\n").encode("cp1252"))
    command = f"iconv -f CP1252 -t UTF-8 {name} > rows.utf8{file.suffix}"
    try:
        told = [str(row.error) for row in rows_of(file, "file") if row.error]
    except UserError as error:
        told = [str(error)]
    [line] = told
    assert "not UTF-8, but maybe Windows-1252: " in line
    assert command in line
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    [converted] = rows_of(tmp_path / f"rows.utf8{file.suffix}", "file")
    assert not converted.error
    assert "Größe" in str(converted.value)


def test_bytes_that_are_no_text_at_all_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "\x81\x00\xff"}\n')
    [row] = rows_of(tmp_path / "rows.jsonl")
    assert str(row.error) == "not UTF-8"
