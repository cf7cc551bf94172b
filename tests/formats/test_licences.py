"""Licences and origins of rows come from the source or a column, and reach records, metrics and model cards. Without
them nothing changes."""

import json
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Data, Source
from stages.models import model_card
from stages.store.licences import UNKNOWN
from stages.store.records import Example, load
from tests.formats.reading import lines, read
from tests.helpers import Chain, nodes, settings
from tests.rows import work
from tests.stages.reading import joined

ROWS = [
    {
        "instruction": f"ask {i}",
        "output": "b",
        "license": licence,
        "meta": {"url": f"https://sea.org/{i}"},
    }
    for i, licence in enumerate(["mit", None, ["cc-by-4.0", "odbl"], "mit"])
]
COLUMNS = {"licence": "license", "origin": "meta.url"}


def read_examples(
    folder: Path, rows: list[Any], **source: Any
) -> tuple[list[Example], dict[str, Any]]:
    source = {"splits": {"sft": 1.0}, **source}
    read_from = Source(str(lines(folder, rows)), **source)
    metrics = joined(
        Data(seed=0, sources=[read_from], max_bad=0.0),
        work(folder),
    )
    return load(folder / "examples.parquet", Example), metrics


def test_a_row_has_its_own_licence_or_that_of_its_source(tmp_path: Path) -> None:
    examples, metrics = read_examples(tmp_path, ROWS, columns=COLUMNS, licence="apache-2.0")
    assert [e.licence for e in examples] == ["mit", "apache-2.0", "cc-by-4.0, odbl", "mit"]
    assert [e.origin for e in examples] == [row["meta"]["url"] for row in ROWS]
    assert metrics["licences"] == {"mit": 2, "apache-2.0": 1, "cc-by-4.0, odbl": 1}


def test_nothing_is_said_where_nothing_is_stated(tmp_path: Path) -> None:
    examples, metrics = read_examples(tmp_path, ROWS)
    assert {(e.licence, e.origin) for e in examples} == {(None, None)}
    assert "licences" not in metrics
    unused = read(lines(tmp_path, ROWS)).unused_columns
    assert {*unused} == {"license", "meta"}, "they are named as columns that nothing reads"
    node = nodes(tmp_path, "data=file", "data.sources=[{path: README.md}]")["data"]
    assert "licence" not in json.dumps(node.settings)


def test_the_card_names_the_licences_of_what_was_trained_on(chain: Chain, tmp_path: Path) -> None:
    manifest = chain.manifest("data")
    manifest["metrics"]["licences"] = {"cc-by-4.0": 1200, UNKNOWN: 5}
    manifest["metrics"]["origins"] = {"teacher\n1. more": 1205}
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.json").write_text(json.dumps(manifest))
    model = chain.folder("sft") / "model"
    inputs = {"base": chain.folder("base"), "data": chain.folder("data")}
    model_card.write_card(model, settings("recipe=tiny").sft, inputs, {})
    assert "licences" not in (model / "README.md").read_text()
    model_card.write_card(model, settings("recipe=tiny").sft, {**inputs, "data": data}, {})
    card = (model / "README.md").read_text()
    assert "licences: cc-by-4.0 (1,200 rows), not" in card
    assert "origins: teacher 1. more (1,205 rows)" in card
