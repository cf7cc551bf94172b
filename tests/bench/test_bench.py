"""Benchmarks import what they use, and the arms of the bake-off differ in what they state."""

import importlib
from dataclasses import replace

import pytest

from tests.bench import bakeoff
from tests.helpers import ROOT

BENCHMARKS = sorted(
    path.stem for path in (ROOT / "tests" / "bench").glob("*.py") if "test" not in path.stem
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")


@pytest.mark.parametrize("name", bakeoff.ARMS)
def test_an_arm_of_the_bake_off_differs_in_what_it_states_alone(name: str) -> None:
    assert bakeoff.undeclared_differences(name) == set()


def test_an_arm_that_differs_in_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SimPO did, whose settings changed the loss's weights, too."""
    other = replace(bakeoff.ARMS["kto"], overrides=("align=kto", "precision=bf16"))
    monkeypatch.setitem(bakeoff.ARMS, "kto", other)
    assert "dpo.precision" in bakeoff.undeclared_differences("kto")
