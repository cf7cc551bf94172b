"""Tests of outside files that change after a command has hashed them and before the stage reads them."""

import json
import os
from pathlib import Path

import pytest

from stages import data as data_stage
from stages import source as source_stage
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, nodes, refused, slow_but


def preferences(better: str, worse: str) -> str:
    """Return a preference set with a fixed size in bytes. The two answers may be swapped."""
    rows = [
        {"prompt": f"Say {i}.", "chosen": f"{better} {i}", "rejected": f"{worse} {i}"}
        for i in range(24)
    ]
    return "\n".join(map(json.dumps, rows))


def swap_while(module: object, monkeypatch: pytest.MonkeyPatch, swap: object) -> None:
    """Call a function at the end of a stage, before the next stage starts."""
    run = module.run

    def and_then(*arguments: object) -> object:
        result = run(*arguments)
        swap()
        return result

    monkeypatch.setattr(module, "run", and_then)


@pytest.mark.parametrize(
    "way", slow_but(["replaced", "edited in place, its time set back"], "replaced")
)
def test_a_preference_file_that_is_swapped_while_another_stage_works_is_refused(
    way: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(preferences("good", "evil"))
    overrides = ("stage=label", "label=dataset", f"label.path={file}")
    target = (*TINY, f"outputs={chain.root}", "stage=dpo", "data.seed=7", *overrides[1:])
    before = nodes(chain.root, *overrides)["label"].fingerprint

    def swap() -> None:
        stat = file.stat()
        if way == "replaced":
            (tmp_path / "other").write_text(preferences("evil", "good"))
            os.replace(tmp_path / "other", file)
        else:
            file.write_text(preferences("evil", "good"))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    swap_while(data_stage, monkeypatch, swap)
    message = refused(*target)
    assert message.startswith(f"{file} changed after the command started")
    assert not (chain.root / "label" / before).exists()
    monkeypatch.undo()
    after = nodes(chain.root, *overrides)["label"]
    assert after.fingerprint != before
    build(chain.root, *overrides)
    judged = Store(chain.root).folder(after)
    assert (judged / "candidates.parquet").exists()


def test_a_file_that_changes_while_its_stage_reads_it_is_published_by_no_name(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change a file and restore it while the stage runs: the stage may have read the changed content."""
    file = tmp_path / "rows.jsonl"
    row = '{"instruction": "Say a.", "output": "a"}\n'
    file.write_text(row)
    source = f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]"
    node = nodes(chain.root, source)["data_source_1"]
    store = Store(chain.root)

    def swap() -> None:
        file.write_text(row.replace('"a"', '"b"'))
        file.write_text(row)

    swap_while(source_stage, monkeypatch, swap)
    assert f"{file} changed while it was read" in refused(
        *TINY, f"outputs={chain.root}", "stage=data", source
    )
    assert not store.folder(node).exists()
    assert not store.partial(node).exists()
    monkeypatch.undo()
    assert nodes(chain.root, source)["data_source_1"].fingerprint == node.fingerprint, (
        "it holds the same again"
    )
    build(chain.root, "stage=data", source)
    assert store.find(node)
