"""Files of each kind and each compression give the same rows."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.errors import UserError
from stages.config.override_text import override
from stages.formats.readers.files import rows_of, text_rows
from tests.formats.reading import read, summarize

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
    "array.json": ("\ufeff" + json.dumps(ROWS)).encode(),
    "table.csv": table(","),
    "semicolons.csv": table(";"),
    "table.tsv": table("\t"),
    "table.parquet": written(pq.write_table),
    "stream.arrow": written(stream),
    "file.arrow": written(file),
    "excel.csv": b"sep=;\r\n" + table(";"),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "wrapped.json": json.dumps({"version": "1", "data": ROWS}, indent=1).encode(),
    "columns.json": json.dumps(
        {key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]}
    ).encode(),
    "lists.json": json.dumps(
        {key: [row[key] for row in ROWS] for key in ROWS[0]}, indent=2
    ).encode(),
    "server.json": json.dumps(
        {
            "features": [{"name": "instruction"}, {"name": "output"}],
            "rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)],
            "num_rows_total": 2,
            "partial": False,
        }
    ).encode(),
    "bytes.parquet": written(
        lambda rows, sink: pq.write_table(
            rows.cast(pa.schema([(name, pa.binary()) for name in ROWS[0]])), sink
        )
    ),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize(
    ("name", "packed"),
    [*product(CONTENTS, [""]), *product(["lines.jsonl", "table.csv"], PACKED)],
)
def test_a_file_is_told_by_what_it_holds(name: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / (name + packed)
    path.write_bytes(PACKED[packed](CONTENTS[name]))
    assert [row.value for row in rows_of(path)] == ROWS
    assert summarize(read(path))[1] == (["ä"], ["g"], None)


@pytest.mark.parametrize("packed", [name for name in PACKED if name])
def test_a_packed_file_that_is_cut_off_is_told(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.jsonl{packed}"
    whole = PACKED[packed](LINES.encode() * 99)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="broken or cut off"):
        list(rows_of(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.json",
            json.dumps({"a": ROWS, "b": ROWS[:1]}, indent=1),
            r"one JSON object .* jq -c '\.\"a\"\[\]'",
        ),
        (
            "rows.json",
            '{\n "data": [\n  {\n   "a": 1,\n  }\n ]\n}',
            r"line [45] column .*correct the object",
        ),
        ("rows.csv", b"PK\x03\x04 a workbook", "is a zip archive or an Excel workbook"),
        (
            "rows.db",
            b"SQLite format 3\0",
            r"sqlite3 -header -csv /.*/rows.db 'select \* from TABLE' > rows.csv",
        ),
        ("rows.parquet", b"PAR1 not all of it", "broken or cut off"),
        ("rows.pkl", b"\x80\x04K", "a pickle, which may run code"),
        ("rows.yaml", "- prompt: a\n", r"is YAML. Write it as JSON lines: python -c .*rows.yaml"),
        (
            "rows.jsonl",
            b"rows.jsonl" + b"\0" * 247 + b"ustar",
            "is a tar archive. Unpack it: tar -xf /.*/rows.jsonl",
        ),
        (
            "rows.jsonl",
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
            "is a pointer of Git LFS, not the file itself.*git lfs pull",
        ),
        (
            "rows.txt",
            "a\n\nb\nc",
            r"documents=file' for 1 .*documents=paragraphs' for 2 .*documents=lines' for 3 ",
        ),
    ],
)
def test_what_has_no_rows_is_refused_with_a_way_out(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_plain_text_is_divided_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a\r\nb\r\n\r\nc\r\n\r\n\r\nd\r\n", newline="")
    divided = {
        "file": ["a\nb\n\nc\n\n\nd"],
        "sections": ["a\nb\n\nc", "d"],
        "paragraphs": ["a\nb", "c", "d"],
    }
    for documents, texts in {**divided, "lines": list("abcd")}.items():
        assert [each.answers[0] for each in read(path, documents=documents).parsed] == texts
    rows = text_rows(path, path.read_text(), "paragraphs")
    assert [row.line for row in rows] == [1, 2, 3]


def test_labels_that_datasets_wrote_as_numbers_have_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved"):
        result = read(path, columns={"prompt": "text", "completion": "label"})
        assert summarize(result) == [(["a"], ["pos"], None), (["b"], ["neg"], None)]


def test_an_open_quote_loses_no_line_silently(tmp_path: Path) -> None:
    rows = ["prompt,completion", *(f"q{i},a{i}" for i in range(20))]
    rows[6] = 'q5,"a5'
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    result = read(tmp_path / "rows.csv")
    assert (len(result.parsed), len(result.bad_rows)) == (5, 15)
    assert "from line 7 on" in str(result.bad_rows[-1].error)


def test_a_list_in_a_cell_may_be_as_python_shows_it(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "b"}]
    with open(tmp_path / "rows.csv", "w", newline="") as sink:
        csv.writer(sink).writerows([["messages"], [str(turns)]])
    assert summarize(read(tmp_path / "rows.csv")) == [(["it's"], ["b"], None)]


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
         "data/train*"),
        (["train.jsonl", "dev.jsonl"], "train*"),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], "gsm8k_train*"),
    ],
)  # fmt: skip
def test_a_folder_with_a_split_that_is_held_out_is_refused(
    names: list[str], train: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    with pytest.raises(UserError, match="holds the splits") as raised:
        read(tmp_path)
    assert override("data.sources[0].path", str(tmp_path / train)) in str(raised.value)
    assert len(read(tmp_path / train).parsed) == 2 * sum("train" in name.lower() for name in names)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "contents",
    [
        {"rows.json": json.dumps([TURNS, TURNS])},
        {"rows.jsonl": f"{json.dumps(TURNS)}\n{json.dumps(TURNS)}\n"},
        {f"{i}.json": json.dumps({"messages": TURNS}, indent=2) for i in range(2)},
    ],
    ids=["lists in an array", "a list a line", "an object a file"],
)
def test_turns_may_be_a_row_and_a_row_a_file(contents: dict[str, str], tmp_path: Path) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    assert summarize(read(tmp_path)) == [(["a"], ["b"], None)] * 2
