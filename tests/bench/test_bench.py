"""Benchmarks import what they use."""

import importlib

import pytest

from tests.helpers import ROOT, needing

OF_EXTRAS = {"memory": "forecast", "sound_trainings": "examine"}  # what these benchmarks measure
NAMES = sorted(
    path.stem for path in (ROOT / "tests" / "bench").glob("*.py") if "test" not in path.stem
)
BENCHMARKS = [needing(OF_EXTRAS[name], name) if name in OF_EXTRAS else name for name in NAMES]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")
