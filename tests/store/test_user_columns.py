"""The user's columns that nothing else reads: which are kept, and how they are joined."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.store import user_columns
from stages.store.records import Example, load
from stages.store.user_columns import KeptColumns, read_user_columns
from tests.helpers import build


def kept(rows: list[dict[str, Any]], folder: Path) -> dict[str, list[Any]]:
    """Return the columns of these rows as they are written."""
    columns = KeptColumns()
    for row in rows:
        columns.add(row)
    columns.save(folder / "columns.parquet", map(str, range(len(rows))))
    table = pq.read_table(folder / "columns.parquet")
    assert table["id"].to_pylist() == [*map(str, range(len(rows)))] or table.num_columns == 1
    return {name: table[name].to_pylist() for name in table.column_names if name != "id"}


@pytest.mark.parametrize(
    ("values", "is_kept"),
    [
        ([f"v{i % 50}" for i in range(200)], True),
        ([f"v{i % 51}" for i in range(200)], False),
        ([*range(200)], True),
        ([i / 7 for i in range(200)], True),
        ([*range(100), *(i / 7 for i in range(100))], True),
        (["a" * 100, "b"], True),
        (["b", "a" * 101], False),
        ([True, False], True),
        (["\ud83d", "\u00e9"], True),
        ([2**63], False),
    ],
)
def test_numbers_and_few_short_values_are_kept(
    values: list[Any], is_kept: bool, tmp_path: Path
) -> None:
    columns = kept([{"x": value} for value in values], tmp_path)
    expected = [v.encode(errors="replace").decode() if isinstance(v, str) else v for v in values]
    assert columns == ({"x": expected} if is_kept else {})


def test_rows_without_a_value_are_empty_in_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_columns, "ROWS_PER_GROUP", 3)
    rows: list[dict[str, Any]] = [{"early": i} for i in range(4)] + [{"late": "x"}] * 3
    assert kept(rows, tmp_path) == {
        "early": [0, 1, 2, 3, None, None, None],
        "late": [None] * 4 + ["x"] * 3,
    }


BRIEF = ("label=own", "label.own={file: docs/examples/brief.py, name: Brief}")
CANDIDATES = [
    {"prompt": f"Describe thing {i}.", "completion": f"It is thing {i}.", "level": i, "tag": [i]}
    for i in range(4)
]


def test_a_preference_files_columns_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Name {i}.", "chosen": "Good.", "rejected": "Bad.", "domain": f"d{i % 2}"}
        for i in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = tmp_path / "outputs"
    build(root, "stage=label", "label=dataset", f"label.path={file}")
    node = next((root / "label").glob("*/manifest.json")).parent
    prompts = {p.messages[0]["content"]: p.id for p in load(node / "prompts.parquet", Example)}
    columns = read_user_columns([node], prompts.values())
    for row in rows:
        assert columns.of(prompts[row["prompt"]]) == {"domain": row["domain"]}


def test_a_prompts_columns_are_those_of_its_first_row(tmp_path: Path) -> None:
    """Values have their types; a node that was built before columns were kept names the setting to type."""
    file = tmp_path / "candidates.jsonl"
    rows = [*CANDIDATES, {**CANDIDATES[1], "completion": "Another.", "level": 9}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("stage=sample", "sample=file", f"sample.file={file}", "sample.own_prompts=true", *BRIEF)
    root = tmp_path / "outputs"
    build(root, *line)
    node = next((root / "sample").glob("*/manifest.json")).parent
    digest = json.loads((node / "manifest.json").read_text())["digest"]
    prompts = {p.messages[0]["content"]: p.id for p in load(node / "prompts.parquet", Example)}
    columns = read_user_columns([node], prompts.values())
    assert sorted(columns.names) == ["level", "tag"]
    for row in CANDIDATES:
        assert columns.of(prompts[row["prompt"]]) == {"level": row["level"], "tag": row["tag"]}
    assert columns.of("another") == {"level": None, "tag": None}
    (node / "columns.parquet").unlink()
    lacking = read_user_columns([node], prompts.values())
    assert "rebuild=sample" in lacking.lacking_message
    build(root, *line, "rebuild=sample")
    assert json.loads((node / "manifest.json").read_text())["digest"] == digest
    assert (node / "columns.parquet").exists()
