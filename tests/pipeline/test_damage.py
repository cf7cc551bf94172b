"""Tests of damaged files: files of a store are emptied, truncated or replaced. A warning follows, no traceback."""

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.store import sealed_json
from stages.store.sealed_json import SEAL, warn_once
from stages.store.store import Store
from stages.store.workspace import SCRATCH
from tests.helpers import TINY, Chain, build, made_once, nodes, refused, slow_but
from tests.pipeline.test_resume import CADENCE, kill_when

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a list": lambda content: b"[]",
    "another object": lambda content: b'{"a": 1}',
}


def best_step(scratch: Path) -> float:
    try:
        return json.loads((scratch / "best" / "best.json").read_text())["step"]
    except FileNotFoundError:  # none yet, or just being replaced
        return math.inf


@pytest.fixture(scope="session")
def killed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which SFT, the reference and DPO were killed during their work. Do not write to it: use `begun`."""

    def make(root: Path) -> None:
        shutil.copytree(built, root, symlinks=True)
        store = Store(root)
        node_by_name = nodes(root)
        for name in ("sft", "reference", "dpo"):
            folder = store.folder(node_by_name[name])
            scratch = store.partial(node_by_name[name]) / SCRATCH
            folder.rename(root / f"kept-{name}")

            def reached(scratch: Path = scratch, name: str = name) -> bool:
                if name == "reference":
                    return len(list(scratch.glob("shards/*.parquet"))) > 1
                saved = [
                    int(p.parent.name.split("-")[1]) for p in scratch.glob(f"checkpoints/*/{SEAL}")
                ]
                # A checkpoint from before the first best step has no best weights, and a resume from it is correct.
                return bool(saved) and (name == "dpo" or best_step(scratch) < min(saved))

            kill_when(reached, root, name, at_publish=False)
            (root / f"kept-{name}").rename(folder)
            shutil.move(scratch.parent, root / f"begun-{name}")

    return made_once(tmp_path_factory, "killed", make)


@pytest.fixture
def begun(killed: Path, tmp_path: Path) -> Callable[[str], Chain]:
    """Return a copy of the chain in which one stage was killed."""

    def of(name: str) -> Chain:
        root = tmp_path / "outputs"
        shutil.copytree(killed, root, symlinks=True)
        node = nodes(root)[name]
        store = Store(root)
        shutil.rmtree(store.folder(node))
        shutil.move(root / f"begun-{name}", store.partial(node))
        return Chain(root)

    return of


# Weights, a file of DPO alone, and a shard, each damaged in another way
SCRATCH_FILES = [
    ("sft", "best/model.safetensors", "cut"),
    ("dpo", "first_step.json", "another object"),
    ("reference", "shards/block-000000-*.parquet", "cut"),
]


@pytest.mark.extended
@pytest.mark.parametrize(("stage", "file", "how"), SCRATCH_FILES)
def test_damaged_scratch_is_said_and_built_again(
    stage: str,
    file: str,
    how: str,
    begun: Callable[[str], Chain],
    killed: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chain = begun(stage)
    node = nodes(chain.root)[stage]
    matches = (Store(chain.root).partial(node) / SCRATCH).glob(file)
    *_, path = (p for p in matches if "checkpoints" not in p.parts or (p.parent / SEAL).exists())
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    caplog.set_level(logging.INFO)
    build(chain.root, f"stage={stage}", *CADENCE)
    assert chain.manifest(stage)["digest"] == Chain(killed).manifest(stage)["digest"], (
        "as if nothing had happened"
    )
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(path.name in line or path.parent.name in line for line in warnings), warnings
    assert not any("\n" in line for line in warnings)
    if file.startswith("best/"):
        assert not is_resumed(caplog), (
            "what was best before the checkpoint is only found from the first step"
        )


def is_resumed(caplog: pytest.LogCaptureFixture) -> bool:
    """Return whether a training began at a checkpoint's step."""
    return any("resumes after step" in record.getMessage() for record in caplog.records)


@pytest.mark.extended
def test_a_foreign_checkpoint_is_not_resumed_from(
    begun: Callable[[str], Chain], killed: Path
) -> None:
    chain = begun("sft")
    checkpoints = Store(chain.root).partial(nodes(chain.root)["sft"]) / SCRATCH / "checkpoints"
    (checkpoints / "checkpoint-x").mkdir()
    (checkpoints / "checkpoint-99").mkdir()
    (checkpoints / "checkpoint-100").touch()
    build(chain.root, "stage=sft", *CADENCE)
    assert chain.manifest("sft")["digest"] == Chain(killed).manifest("sft")["digest"]


@pytest.mark.extended
def test_a_kill_between_two_bests_loses_neither(
    begun: Callable[[str], Chain], caplog: pytest.LogCaptureFixture
) -> None:
    """Kill after the new best weights are complete, but before they replace the old ones. No later step is better."""
    chain = begun("sft")
    best = Store(chain.root).partial(nodes(chain.root)["sft"]) / SCRATCH / "best"
    best_record = {"eval_loss": -1.0, "step": best_step(best.parent)}
    sealed_json.write_note(best / "best.json", best_record)
    sealed_json.seal(best)
    best.rename(best.with_suffix(".draft"))
    caplog.set_level(logging.INFO)
    build(chain.root, "stage=sft", *CADENCE)
    metrics = chain.manifest("sft")["metrics"]
    assert {name: metrics[name] for name in best_record} == best_record
    assert is_resumed(caplog)


@pytest.mark.extended
def test_what_was_saved_is_checked_once_more_before_it_is_published(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edit a file when DPO is about to publish it. The next command repairs the node."""
    from stages.training import fit

    shutil.rmtree(chain.folder("dpo"))
    saved = fit.save_trained
    wrong = []

    def edited(trainer: object, folder: Path) -> None:
        saved(trainer, folder)
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        wrong.append(folder)

    monkeypatch.setattr(fit, "save_trained", edited)
    message = refused(*TINY, f"outputs={chain.root}", "stage=dpo")
    assert wrong and str(wrong[0]) in message and "the content of model.safetensors has" in message
    assert not chain.folder("dpo").exists()
    monkeypatch.undo()
    build(chain.root, "stage=dpo")
    assert chain.folder("dpo").exists()


@pytest.mark.extra("compare", "gc")
@pytest.mark.parametrize("how", slow_but(DAMAGE, "cut"))
def test_a_damaged_manifest_is_said_and_its_node_built_again(
    how: str, chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    before = chain.manifest("pairs")["digest"]
    manifest = chain.folder("pairs") / "manifest.json"
    manifest.write_bytes(DAMAGE[how](manifest.read_bytes()))
    for stage in ("plan", "gc", "compare"):
        build(chain.root, f"stage={stage}")
        assert manifest.exists(), "nothing is built or removed by looking at it"
    assert f"{manifest} is damaged" in caplog.text
    assert "rebuild=pairs" in caplog.text
    build(chain.root)
    assert chain.manifest("pairs")["digest"] == before


def with_keys(**changes: Any) -> Callable[[Path], object]:
    """Return a function that changes values in a manifest."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_file(name: str, entry: Any) -> Callable[[Path], object]:
    """Return a function that adds a file to a manifest."""
    return lambda path: with_keys(files=json.loads(path.read_text())["files"] | {name: entry})(path)


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a function that replaces a manifest."""
    return lambda path: (path.unlink(), make(path))


ENTRY = {"bytes": 1, "sha256": "0" * 64}
ODD: list[Callable[[Path], object]] = [
    instead(os.mkfifo),
    instead(Path.mkdir),
    instead(lambda path: path.symlink_to("/dev/zero")),
    lambda path: path.write_text("null"),
    lambda path: path.write_bytes(b'{"a": "\xe9"}'),
    lambda path: path.write_text(json.dumps({"stage": "pairs"})),
    with_keys(files=None),
    with_keys(files={"a": {"sha256": "0"}}),
    with_file("../../x", ENTRY),
    with_file("\x1b[2J", ENTRY),
]


def test_an_odd_manifest_is_one_line_and_its_node_is_built_again(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["pairs"]
    manifest = store.folder(node) / "manifest.json"
    content = manifest.read_bytes()
    for odd in ODD:
        odd(manifest)
        warn_once.cache_clear()
        caplog.clear()
        assert store.find(node) is None
        assert not [folder for folder, _ in store.manifests() if folder == store.folder(node)]
        [line] = [r.getMessage() for r in caplog.records]
        assert line.startswith(f"warning: {manifest} is damaged: "), line
        assert line.endswith(f"outputs={chain.root} rebuild=pairs"), line
        assert "\n" not in line and "\x1b" not in line
        sealed_json.remove(manifest)
        manifest.write_bytes(content)
    with_keys(metrics={"pairs": 3, "mean": math.nan})(manifest)
    assert store.find(node), "a figure of nothing is NaN, and no damage"
    for odd in (ODD[0], ODD[1], with_keys(inputs={})):
        odd(manifest)
        build(chain.root)
        assert store.find(node), "it was built again"


def flip(path: Path) -> None:
    """Flip one bit at the same size and time, as a failing disk does."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.extended
def test_training_hashes_what_it_reads(chain: Chain) -> None:
    digest = chain.manifest("data")["digest"]
    shorter = "sft.epochs=1"
    flip(chain.folder("data") / "examples.parquet")
    message = refused(*TINY, f"outputs={chain.root}", "stage=sft", shorter)
    assert f"{chain.folder('data') / 'examples.parquet'} is damaged" in message
    assert "rebuild=data" in message
    assert not chain.folder("sft", shorter).exists()
    build(chain.root, "stage=sft", shorter, "rebuild=data")
    assert chain.manifest("data")["digest"] == digest
    assert chain.folder("sft", shorter).exists()


# Nodes that read others and train nothing, and one of the nodes that each of them reads.
READERS = {
    "sample": ("sft", "data"),
    "label": ("sample",),
    "pairs": ("label",),
    "answer_sft": ("data",),
    "answer_base": ("base",),
    "eval": ("answer_sft", "data"),
    "report": ("eval", "label"),
}


def test_no_stage_uses_a_file_of_another_node_in_which_a_bit_flipped(chain: Chain) -> None:
    """Change each file at the same size and time. A report does not read weights."""
    stages = {name: node.stage for name, node in nodes(chain.root).items()}
    tried = 0
    for reader, sources in READERS.items():
        away = chain.folder(reader).rename(chain.root / "away")
        for source in sources:
            folder = chain.folder(source)
            for name in chain.manifest(source)["files"]:
                if name.endswith(".safetensors") and reader == "report":
                    continue
                flip(folder / name)
                message, tried = (
                    refused(*TINY, f"outputs={chain.root}", f"stage={stages[reader]}"),
                    tried + 1,
                )
                flip(folder / name)
                assert message.startswith(f"{folder / name} is damaged"), message
                command = f"stage={stages[source]} recipe=tiny outputs={chain.root}"
                assert f"{command} rebuild={stages[source]}" in message, message
        away.rename(chain.folder(reader))
    assert tried > 30


@pytest.mark.extended
def test_a_command_hashes_each_file_once_and_none_that_it_wrote(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("answer_sft", "sample", "label", "pairs", "eval"):
        shutil.rmtree(chain.folder(name))
    file_digest = sealed_json.file_digest
    threads = set[str]()
    read = list[Path]()

    def counted(path: Path) -> str:
        read.append(path)
        threads.add(threading.current_thread().name)
        return file_digest(path)

    monkeypatch.setattr(sealed_json, "file_digest", counted)
    build(chain.root, "stage=eval")
    inputs = [path for path in read if ".partial" not in str(path)]
    assert {path.name for path in inputs} > {
        "examples.parquet",
        "model.safetensors",
        "answers.parquet",
    }
    assert len(inputs) == len({*inputs})
    assert not any(path.is_relative_to(chain.folder("sample")) for path in inputs), (
        "it was hashed when it was written"
    )
    assert threading.main_thread().name not in threads


@pytest.mark.extended
def test_an_edited_result_is_not_reported(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    results = chain.folder("eval") / "results.json"
    before = results.read_text()
    results.write_text(before.replace("0.", "1.", 1))
    assert len(results.read_text()) == len(before)
    build(chain.root, "rebuild=report")
    assert "the content of results.json has" in caplog.text
    assert results.read_text() == before


@pytest.mark.extra("export")
def test_export_hashes_what_it_writes(chain: Chain) -> None:
    flip(chain.folder("dpo") / "model" / "model.safetensors")
    message = refused(*TINY, f"outputs={chain.root}", "stage=export")
    assert "model.safetensors is damaged" in message
    assert "rebuild=dpo" in message
