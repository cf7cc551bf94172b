"""Files that would fill the memory, link elsewhere, or belie their names are refused in one line, and soon."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.blocks.data import ReadLimits
from stages.config.errors import UserError
from stages.formats.readers.files import rows_of
from stages.formats.readers.row import MOST_COLUMNS
from tests.formats.reading import lines, read, summarize
from tests.helpers import TINY, nodes, refused

ROW = {"instruction": "Say a.", "output": "a"}
LIMITS = ReadLimits(line=1, unpacked=3)
LONG = "a" * 1_100_000
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def refusal(file: Path, limits: ReadLimits = LIMITS) -> str:
    """Return the message of the error that reading a file raises."""
    with pytest.raises(UserError) as raised:
        list(rows_of(file, "lines", limits=limits))
    return str(raised.value)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_packed_file_is_unpacked_as_far_as_the_key_allows(kind: str, tmp_path: Path) -> None:
    row = b'{"text": "' + b"a" * 1387 + b'"}\n'
    file, content = tmp_path / f"rows.jsonl.{kind}", row * 2_500
    file.write_bytes(PACKERS[kind](content))
    assert re.fullmatch(rf"{file}: .* 3 MB\. Type data\.max_file=MB .*", refusal(file))
    file.write_bytes(PACKERS[kind](row * 2_000))
    assert sum(1 for _ in rows_of(file, limits=LIMITS)) == 2_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", json.dumps(ROW) + "\n" + json.dumps({"text": LONG})),
        ("rows.json", json.dumps([ROW, {"text": LONG * 2}])),
        ("rows.json", json.dumps({"data": [{"text": LONG}, ROW]})),
        ("rows.csv", f"instruction,output\na,{LONG}\n"),
        ("rows.csv", f"instruction,{LONG}\na,b\n"),
    ],
)
def test_a_line_is_as_long_as_the_key_allows(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert re.fullmatch(rf"{file}: .* 1 MB\. Type data\.max_line=MB .*", refusal(file))
    assert len([*rows_of(file, limits=ReadLimits(line=4))]) >= 1


@pytest.mark.parametrize("rows", [[{"text": LONG[:600_000]}] * 3, {"data": [{"text": LONG}] * 2}])
def test_a_json_file_may_be_longer_than_a_line(rows: Any, tmp_path: Path) -> None:
    """An array on one line, and an object over several lines: no value of an array is too long."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows, indent=1 if isinstance(rows, dict) else None))
    assert len([*rows_of(file, limits=LIMITS)]) == (2 if isinstance(rows, dict) else 3)


def test_a_field_that_never_closes_is_held_no_longer_than_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('instruction,output\na,"' + "b\n" * 1_000_000)
    assert any(
        row.error and "field larger than field limit" in str(row.error)
        for row in rows_of(file, limits=LIMITS)
    )


def test_a_line_of_gigabytes_takes_no_more_memory_than_the_key_allows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with open(file, "wb") as sink:
        sink.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "data.max_line" in refusal(file, ReadLimits())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.extended
def test_the_keys_reach_every_reader_and_no_fingerprint(tmp_path: Path) -> None:
    file, long = lines(tmp_path, [ROW]), tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": LONG}))
    sources = (f"data.sources=[{{path: {file}}}]", "data.audit.against=null")
    plain, bounded = (
        nodes(tmp_path, *sources, *more) for more in ((), ("data.max_line=2", "data.max_file=2"))
    )
    assert bounded["data_source_1"].config.source.limits == ReadLimits(2, 2)
    assert plain["report"].fingerprint == bounded["report"].fingerprint
    label = (
        f"label.path={long}",
        f"outputs={tmp_path / 'outputs'}",
        "data.max_line=1",
        "stage=label",
    )
    assert "Type data.max_line=MB" in refused(*TINY, "label=dataset", *label)
    candidates = tmp_path / "candidates.jsonl"
    candidates.write_text(json.dumps({"prompt": "a", "completion": LONG}))
    sample = (
        "sample=file",
        f"sample.file={candidates}",
        "label=human",
        f"outputs={tmp_path / 'outputs'}",
        "data.max_line=1",
        "stage=plan",
    )
    assert "Type data.max_line=MB" in refused(*TINY, *sample)


@pytest.mark.extended
def test_a_table_of_too_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    names, began = [f"c{i}" for i in range(300_000)], time.process_time()
    csv, parquet, rows = (tmp_path / f"rows.{kind}" for kind in ("csv", "parquet", "jsonl"))
    csv.write_text(",".join(names) + "\n" + ",".join("a" * len(names)) + "\n")
    rows.write_text(json.dumps(dict.fromkeys(names, "a")) + "\n")
    few = [*names[:MOST_COLUMNS], "one more"]
    pq.write_table(pa.table({name: ["a"] for name in few}), parquet)
    for file, count in ((csv, 300_000), (rows, 300_000), (parquet, len(few))):
        with pytest.raises(UserError, match=f"{file.name}: {count:,} columns"):
            read(file)
    assert time.process_time() - began < 5


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder, secret = tmp_path / "set", tmp_path / "elsewhere" / "secret.jsonl"
    folder.mkdir()
    secret.parent.mkdir()
    lines(folder, [ROW])
    secret.write_text(json.dumps(ROW))
    (folder / "also.jsonl").symlink_to("rows.jsonl")
    assert read(folder).rows == 2, "a link inside of it is as good as its file"
    for link, target in (("more.jsonl", secret), ("below", secret.parent)):
        (folder / link).symlink_to(target)
        for path in (folder, folder / "**" / "*.jsonl"):
            with pytest.raises(UserError) as raised:
                read(path)
            assert f"{folder / link}" in str(raised.value) and f"is a link to {target}" in str(
                raised.value
            )
            assert f"outside of {path}" in str(raised.value)
        (folder / link).unlink()
    (tmp_path / "link.jsonl").symlink_to(secret)
    assert read(tmp_path / "link.jsonl").rows == 1, "it is what the user named"


def test_a_snapshot_of_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    snapshot, blobs = (
        tmp_path / "datasets--a--b" / "snapshots" / "0f",
        tmp_path / "datasets--a--b" / "blobs",
    )
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    lines(blobs, [ROW]).rename(blobs / "c0ffee")
    (snapshot / "rows.jsonl").symlink_to(os.path.relpath(blobs / "c0ffee", snapshot))
    assert read(snapshot).rows == 1


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
def test_another_encoding_is_refused_by_its_name(encoding: str, name: str, tmp_path: Path) -> None:
    file, mark = (
        tmp_path / name,
        getattr(codecs, f"BOM_{encoding.replace('-', '_')}".upper().replace("UTF_", "UTF")),
    )
    content = {"rows.jsonl": json.dumps(ROW), "rows.json": json.dumps([ROW])}.get(
        name, "instruction,output\na,b\n"
    )
    file.write_bytes(mark + content.encode(encoding))
    assert refusal(file).startswith(f"{file}: is UTF-16. Save it as UTF-8: iconv -f UTF-16")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '// made by hand\n{"instruction": "a", "output": "b"}\n'),
        (
            "rows.jsonl",
            '{"instruction": "a", "output": "b"} # so\n{"instruction": "c", "output": "d"}\n',
        ),
        ("rows.json", '[{"instruction": "a", /* so */ "output": "b"}]'),
        ("rows.json", '{\n  // made by hand\n  "instruction": "a", "output": "b"\n}\n'),
        ("rows.json", '{"data": [ # rows\n{"instruction": "a", "output": "b"}]}'),
    ],
)
def test_a_comment_in_json_is_called_one(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    try:
        message = " ".join(str(row.error) for row in rows_of(file))
    except UserError as error:
        message = str(error)
    assert "a comment" in message
    assert "sed -E" in message


SEEN = [
    {
        "image": image,
        "conversations": [{"from": "human", "value": request}, {"from": "gpt", "value": answer}],
    }
    for image, request, answer in (
        ("1.png", "<image>\nWhat is it?", "A."),
        ("2.png", "And\n<image>", "<image>"),
        (None, "Say a.", "a"),
        ("3.png", "<image>", "A."),
    )
]


def test_a_placeholder_goes_with_its_column(tmp_path: Path) -> None:
    result = read(lines(tmp_path, SEEN), columns={"image": None})
    assert [request + answers for request, answers, _ in summarize(result)] == [
        ["What is it?", "A."],
        ["And", "<image>"],
        ["Say a.", "a"],
    ]
    assert ["<image>" in str(row.error) for row in result.bad_rows] == [True]
    assert any("3 rows had <image>" in line for line in result.notes)
    without_image: list[Any] = [{**row, "image": None} for row in SEEN]
    assert "<image>" in str(summarize(read(lines(tmp_path, without_image)))), (
        "nobody said that it be left out"
    )
