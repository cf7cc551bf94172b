"""Tests of a store of an earlier version: what it holds is used, or refused with the command that makes it anew.

`python -m tests.pipeline.test_older_store` records `older_store.tar.xz`, the store of a tiny run by the code as it is.
Record it again when a test says that nothing in it is reused any more.
"""

import re
import shlex
import tarfile
import tempfile
from pathlib import Path

import pytest

from stages.config.exit_codes import GateCode
from stages.config.stage_table import STAGES
from stages.store.manifest import Manifest, read_manifest
from stages.store.node import Node
from stages.store.store import Store
from tests.helpers import TINY, inside, nodes

ARCHIVE = Path(__file__).with_name("older_store.tar.xz")
# a smaller model than that of recipe=tiny: its weights are most of the archive
SMALL = (
    "model.random_init.hidden_size=32",
    "model.random_init.heads=2",
    "model.random_init.layers=1",
    "model.random_init.vocab_size=512",
)
STORE = "store"  # the name of the folder in the archive; manifests hold commands with it
FOLDERS = [
    "latest",
    "base",
    "data",
    "sft",
    "sample",
    "label",
    "pairs",
    "reference",
    "dpo",
    "answer",
    "eval",
]

pytestmark = pytest.mark.extended


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The folder of the earlier version's store."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / STORE


def versions_of(folder: Path) -> dict[str, int]:
    """Return the number of each stage in a store."""
    manifests = list[Manifest]()
    for file in folder.glob("*/*/manifest.json"):
        manifests.append(read_manifest(file.parent) or {})
    return {manifest["stage"]: manifest["version"] for manifest in manifests}


def is_made_alike(node: Node, versions: dict[str, int]) -> bool:
    """Return whether no number of the stages that made the node was raised since."""
    return all(STAGES[made.stage].version == versions[made.stage] for made in node.lineage)


def test_what_is_made_as_before_is_reused(stored: Path) -> None:
    versions = versions_of(stored)
    store = Store(stored)
    reused = list[str]()
    for name, node in nodes(stored, *SMALL).items():
        if node.stage not in versions:
            continue
        assert (store.find(node) is not None) == is_made_alike(node, versions), name
        if store.find(node):
            reused.append(name)
    assert reused, "all stages compute something else by now: record the store again"


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        (
            ("stage=gate", "gate.against=base"),
            {GateCode.passes, GateCode.worse, GateCode.cannot_tell},
        ),
        (("stage=compare",), {0}),
        (("stage=report", *TINY, *SMALL), {0}),
    ],
    ids=["gate", "compare", "report"],
)
def test_an_older_evaluation_is_read_or_made_again(
    stored: Path, line: tuple[str, ...], statuses: set[int]
) -> None:
    """Its figures may be other ones since. Then the error has the command that evaluates again."""
    typed = (*line, f"outputs={STORE}")
    answered = inside(*typed, cwd=stored.parent)
    if answered.returncode not in statuses:
        again = re.search(r"python run\.py (.*rebuild=eval.*)", answered.stderr)
        assert again, answered.stderr
        rebuilt = inside(*shlex.split(again[1]), cwd=stored.parent)
        assert rebuilt.returncode == 0, rebuilt.stderr
        answered = inside(*typed, cwd=stored.parent)
    assert answered.returncode in statuses, answered.stderr


def record() -> None:
    """Make the archive by a run of the code as it is."""
    with tempfile.TemporaryDirectory() as folder:
        ran = inside(*TINY, *SMALL, f"outputs={STORE}", cwd=Path(folder))
        assert ran.returncode == 0, ran.stderr
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            for name in FOLDERS:
                archive.add(Path(folder) / STORE / name, f"{STORE}/{name}")


if __name__ == "__main__":
    record()
