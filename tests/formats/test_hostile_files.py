"""Files that would fill the memory, link elsewhere, or belie their names are refused in one line, and soon."""

import bz2
import gzip
import json
import lzma
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from stages.config.blocks.data import ReadLimits
from stages.config.errors import UserError
from stages.formats.readers.files import rows_of
from tests.formats.reading import lines, read

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
    file = tmp_path / f"rows.jsonl.{kind}"
    content = row * 2_500
    file.write_bytes(PACKERS[kind](content))
    assert re.fullmatch(rf"{file}: .* 3 MB\. Type data\.max_file=6 .*", refusal(file))
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
    assert re.fullmatch(rf"{file}: .* 1 MB\. Type data\.max_line=[23] .*", refusal(file))
    assert len([*rows_of(file, limits=ReadLimits(line=4))]) >= 1


def test_a_line_of_gigabytes_takes_no_more_memory_than_the_key_allows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with open(file, "wb") as sink:
        sink.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "data.max_line" in refusal(file, ReadLimits())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


@pytest.mark.extended
def test_a_table_of_too_many_columns_is_refused_at_once(tmp_path: Path) -> None:
    began = time.process_time()
    names = [f"c{i}" for i in range(300_000)]
    table = tmp_path / "rows.csv"
    rows = tmp_path / "rows.jsonl"
    table.write_text(",".join(names) + "\n" + ",".join("a" * len(names)) + "\n")
    rows.write_text(json.dumps(dict.fromkeys(names, "a")) + "\n")
    for file in (table, rows):
        with pytest.raises(UserError, match=f"{file.name}: 300,000 columns"):
            read(file)
    assert time.process_time() - began < 5


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    elsewhere = tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    lines(folder, [ROW])
    secret = lines(elsewhere, [ROW])
    (folder / "also.jsonl").symlink_to("rows.jsonl")
    assert read(folder).rows == 2, "a link inside of it is as good as its file"
    for link, target in (("more.jsonl", secret), ("below", elsewhere)):
        (folder / link).symlink_to(target)
        for path in (folder, folder / "**" / "*.jsonl"):
            with pytest.raises(UserError, match=re.escape(f"is a link to {target}")):
                read(path)
        (folder / link).unlink()
    (tmp_path / "link.jsonl").symlink_to(secret)
    assert read(tmp_path / "link.jsonl").rows == 1, "it is what the user named"


def test_a_snapshot_of_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0f"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    lines(blobs, [ROW]).rename(blobs / "c0ffee")
    (snapshot / "rows.jsonl").symlink_to(os.path.relpath(blobs / "c0ffee", snapshot))
    assert read(snapshot).rows == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '// made by hand\n{"instruction": "a", "output": "b"}\n'),
        (
            "rows.jsonl",
            '{"instruction": "a", "output": "b"} # so\n{"instruction": "c", "output": "d"}\n',
        ),
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


def test_a_placeholder_goes_with_its_column(tmp_path: Path) -> None:
    def seen(request: str, answer: str) -> dict[str, str]:
        return {"image": "1.png", "prompt": request, "completion": answer}

    rows = [seen("<image>\nWhat is it?", "A."), seen("Say a.", "a"), seen("<image>", "A.")]
    file = lines(tmp_path, rows)
    result = read(file, columns={"image": None})
    read_as = [row.messages[0]["content"] for row in result.parsed]
    assert read_as == ["What is it?", "Say a."]
    assert "<image>" in str(result.bad_rows[0].error)
