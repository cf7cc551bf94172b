"""Stores that are kept between runs of pytest, in its cache folder, for as long as the sources stay the same.

A store of the tiny chain takes half a minute to build. One room's tests read the kept one in a second."""

import hashlib
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from filelock import FileLock

from stages.config.installation import ROOT
from tests.helpers import made_once

SOURCES = ("stages", "conf", "recipes", "run.py", "tests/conftest.py")
NOT_A_SOURCE = {".pyc", ".swp"}
STORE = "store"


def kept_copy(
    config: pytest.Config,
    factory: pytest.TempPathFactory,
    name: str,
    make: Callable[[Path], None],
) -> Path:
    """Return this run's copy of the store that `make` makes, with the files beside it. The store itself is made only if
    none of these sources is kept."""

    def copy(folder: Path) -> None:
        shutil.copytree(kept_folder(config, name, make), folder, symlinks=True)

    return made_once(factory, name, copy) / STORE


def kept_folder(config: pytest.Config, name: str, make: Callable[[Path], None]) -> Path:
    """Return the kept folder of a store. Those of other sources go."""
    assert config.cache
    place = config.cache.mkdir(f"stores-{name}")
    kept = place / digest_of_sources()
    with FileLock(place / "lock"):
        if not kept.exists():
            for outdated in place.glob("*/"):
                shutil.rmtree(outdated)
            unfinished = place / "unfinished"
            unfinished.mkdir()
            make(unfinished / STORE)
            unfinished.rename(kept)
    return kept


def digest_of_sources() -> str:
    """Return a digest of all that decides what a command makes: the machine, the installed packages, the sources."""
    digest = hashlib.sha256(f"{platform.node()} {platform.python_version()}".encode())
    for package in sorted(f"{each.name} {each.version}" for each in distributions()):
        digest.update(package.encode())
    for path in source_files():
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def source_files() -> Iterator[Path]:
    """Yield all source files in a fixed order."""
    for source in SOURCES:
        paths = [ROOT / source, *sorted((ROOT / source).rglob("*"))]
        yield from (path for path in paths if path.is_file() and path.suffix not in NOT_A_SOURCE)
