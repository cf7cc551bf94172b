"""Benchmarks import what they use."""

import importlib

import pytest

from tests.helpers import ROOT

BENCHMARKS = sorted(
    path.stem for path in (ROOT / "tests" / "bench").glob("*.py") if "test" not in path.stem
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")
