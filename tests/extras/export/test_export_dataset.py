"""Tests of `export.format=dataset`: `load_dataset` opens it, TRL's trainers learn from it, and its card is right."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, load_dataset
from huggingface_hub import DatasetCard

from stages.extras.export import command as export
from stages.store.manifest import manifest_of
from stages.store.records import Example, Pair, load, save
from stages.store.store import Store
from tests.helpers import Chain, build, nodes

ASKED = ("stage=export", "export.format=dataset")


def exported(chain: Chain, *overrides: str) -> Path:
    """Export a dataset and return its folder, the only one."""
    build(chain.root, *ASKED, *overrides)
    [folder] = (chain.root / "export").glob("dataset-*")
    return folder


def opened(folder: Path, name: str | None, tmp_path: Path) -> DatasetDict:
    return load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))


def test_every_row_of_the_nodes_is_in_the_folder_that_load_dataset_opens(
    chain: Chain, tmp_path: Path
) -> None:
    folder = exported(chain)
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)
    examples = load(chain.folder("data") / "examples.parquet", Example)

    preferences = opened(folder, None, tmp_path)  # the first configuration is the default
    assert [*preferences] == [*export.SPLITS]
    for split, rows in preferences.items():
        of_split = [p for p in pairs if p.split == split]
        for name in ("id", "prompt", "chosen", "rejected", "labeler"):
            assert list(rows[name]) == [vars(p)[name] for p in of_split]
        assert list(rows["score_difference"]) == [p.margin for p in of_split]
        assert "margin" not in rows.column_names, "TRL's trainers would use this column"
        sources = {example.id: example.source for example in examples}
        assert list(rows["source"]) == [sources[i] for i in rows["prompt_id"]]

    demonstrations = opened(folder, "demonstrations", tmp_path)
    for of_data, split in export.SFT_SPLITS.items():
        rows = demonstrations[split]
        expected = [(e.messages, e.reference) for e in examples if e.split == of_data]
        assert [(row["prompt"], row["completion"][0]["content"]) for row in rows] == expected


def test_the_card_is_the_hubs_and_its_code_runs(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = exported(chain)
    text = (folder / "README.md").read_text()
    card = DatasetCard(text)
    assert [c["config_name"] for c in card.data.to_dict()["configs"]] == [
        "preferences",
        "demonstrations",
    ]
    [code] = text.split("```python\n")[1:]
    namespace: dict[str, DatasetDict] = {}
    exec(code.split("```")[0].replace("FOLDER", str(folder)), namespace)
    trainers = {"preferences": ["DPO", "Reward"], "demonstrations": ["SFT"]}
    for name, learning in trainers.items():
        words = " and ".join(f"{each}Trainer" for each in learning)
        counts = " | ".join(str(len(rows)) for rows in namespace[name].values())
        assert f"| `{name}` | TRL's {words} | {counts} |" in text
    for reason, count in chain.manifest("pairs")["metrics"]["prompts_without_pair"].items():
        assert f"{reason} ({count})" in text
    assert "licence" in text and "license" not in card.data.to_dict(), (
        "the card has no licence that no source states"
    )


def test_licences_of_rows_stand_in_table_and_card(chain: Chain, tmp_path: Path) -> None:
    """The table of prompts has a column `licence`."""
    exported(chain)
    pairs = nodes(chain.root)["pairs"]
    judged = chain.folder("label")
    table = pq.read_table(judged / "prompts.parquet")
    alternating = [None, "CC BY 4.0"] * len(table)
    licences = pa.array(alternating[: len(table)], pa.string())
    pq.write_table(
        table.drop_columns("licence").append_column("licence", licences), judged / "prompts.parquet"
    )
    tables, plain = export.collect_tables([pairs], Store(chain.root).folder)
    rows = tables["preferences"]["train"]
    licence_by_id = dict(zip(table["id"].to_pylist(), licences.to_pylist(), strict=True))
    assert rows["licence"].to_pylist() == [licence_by_id[i] for i in rows["prompt_id"].to_pylist()]
    card = export.dataset_card("t\x1b\u202e", tables, plain, [manifest_of(judged)])
    assert DatasetCard(card).data.license == ["cc-by-4.0", "unknown"] and r"# t\x1b\u202e" in card
    assert "| tasks | CC BY 4.0 |" in card


def test_plain_text_has_no_prompt_and_is_counted(chain: Chain) -> None:
    data = nodes(chain.root)["data"]
    rows = [Example(str(i), [], "plain", "s", "t", "sft") for i in range(3)]
    rows += [
        Example("q", [{"role": "user", "content": "q"}], answer, "s", "t", "sft")
        for answer in ("a", None)
    ]
    rows += [replace(rows[3], id="masked", reference="of weight 0", trained=[False])]
    save(chain.folder("data") / "examples.parquet", rows, Example)
    tables, plain = export.collect_tables([data], Store(chain.root).folder)
    assert tables["demonstrations"]["train"]["completion"].to_pylist() == [
        [{"role": "assistant", "content": "a"}]
    ]
    assert plain == 4
    assert "4 demonstrations are left out" in export.dataset_card("t", tables, plain, [])
