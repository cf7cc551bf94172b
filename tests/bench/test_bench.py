"""Benchmarks import what they use."""

import importlib

import pytest

from tests.helpers import ROOT

OF_EXTRAS = {"memory": "forecast", "sound_trainings": "examine"}  # what these benchmarks measure
BENCHMARKS = [
    pytest.param(
        path.stem, marks=pytest.mark.extra(OF_EXTRAS[path.stem]) if path.stem in OF_EXTRAS else ()
    )
    for path in sorted((ROOT / "tests" / "bench").glob("*.py"))
    if "test" not in path.stem
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")
