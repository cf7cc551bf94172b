"""Fixtures of all tests. Tests run offline and on one thread; the tiny chain is built once and copied."""

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "WANDB_SILENT": "true",
}
for variable in ("WANDB_API_KEY", "WANDB_MODE", "PLUMBLINE_WANDB_MODE", "PLUMBLINE_COMMAND"):
    os.environ.pop(variable, None)
# Expected figures are the CPU's, on a machine with a GPU too.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402

from stages.config.extras import EXTRAS  # noqa: E402
from stages.config.installation import ROOT  # noqa: E402
from stages.hardware import process  # noqa: E402
from stages.store.sealed_json import OUTPUTS  # noqa: E402
from tests.helpers import INSTALLED, SECRET, TINY, Chain, command, made_once  # noqa: E402
from tests.kept import kept_copy  # noqa: E402

pytest_plugins = ["tests.budgets", "tests.goldens.refusals"]
process.prepare()


frozen_modules = 0


def pytest_collection_finish() -> None:
    """Exclude all objects loaded so far from garbage collection. Every node and every training runs the collector over
    millions of objects of torch, TRL and the tests, which takes a third of a second each time."""
    global frozen_modules
    gc.collect()
    gc.freeze()
    frozen_modules = len(sys.modules)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of the core that needs an extra which is not there."""
    for marker in item.iter_markers("extra"):
        missing = {*marker.args} - {*EXTRAS}
        if missing:
            pytest.skip(f"stages/extras/ lacks {', '.join(sorted(missing))}")


def pytest_runtest_teardown() -> None:
    """Do so again after a test that loaded another library."""
    if len(sys.modules) > frozen_modules + 100:
        pytest_collection_finish()


@pytest.fixture(scope="session", autouse=True)
def no_store_of_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give tests and their processes an empty default store, so that they never use the checkout's outputs/."""
    os.environ[OUTPUTS] = str(tmp_path_factory.mktemp("usual"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection except to the loopback interface."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the whole chain of `recipe=tiny`. Do not write to it: use the fixture `chain`.

    `built.json` next to the store holds the command's CPU-seconds and its output, in which the store is `outputs`.
    """

    def make(root: Path) -> None:
        # pytest rewrites the assertions of a plugin that is not imported yet
        from tests.budgets import spent

        before = spent()
        ran = command(*TINY, f"outputs={root}")
        assert ran.returncode == 0, ran.stderr
        # the store is copied to another place
        output = ran.stdout.replace(str(root), "outputs")
        costs = {"cpu_seconds": spent() - before, "stdout": output}
        root.with_name("built.json").write_text(json.dumps(costs))

    return kept_copy(request.config, tmp_path_factory, "built", make)


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the whole chain, tracked offline by W&B without a key, and by every other tracker that is installed.
    Do not write to it.

    The home folder of that command, tracked-home, is next to the store. Its environment held a secret (HF_TOKEN).
    """

    def make(root: Path) -> None:
        home = root.with_name("tracked-home")
        home.mkdir()
        environment = {**os.environ, "HF_TOKEN": SECRET, "HOME": str(home)}
        ran = command(
            "recipe=tiny",
            f"tracker=[{','.join(INSTALLED)}]",
            f"outputs={root}",
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        assert ran.returncode == 0, ran.stderr
        assert "WANDB_API_KEY" not in ran.stderr + ran.stdout

    return made_once(tmp_path_factory, "tracked", make)


@pytest.fixture
def chain(built: Path, tmp_path: Path) -> Chain:
    """A copy of the tiny chain, which a test may change."""
    root = tmp_path / "outputs"
    shutil.copytree(built, root, symlinks=True)
    return Chain(root)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in a copy of the checkout, beside its settings and program. A test undoes its edits in it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("stages", "conf", "recipes"):
        without_compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=without_compiled)
    shutil.copy(ROOT / "run.py", root)
    return root / "stages"
