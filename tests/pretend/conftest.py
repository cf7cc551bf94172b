"""The fixture of the pretended accelerator."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.pretend import build


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The library, compiled at most once per machine; without a compiler the test is skipped."""
    if reason := build.why_not():
        pytest.skip(reason)
    return build.build()


@pytest.fixture
def pretend(compiled: Path) -> Iterator[ModuleType]:
    """The pretended accelerator is what torch finds in this process, during one test."""
    from tests.pretend import device

    device.make_available()
    yield device
    device.make_available(False)
