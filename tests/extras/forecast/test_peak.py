"""Tests of the peak memory that is forecast for trainings."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config.schema import RECIPES
from stages.extras.forecast.peak import predicted_parts
from stages.hardware import machine
from stages.pipeline.graph import wire_graph
from stages.store.store import Store
from tests.helpers import settings


@pytest.mark.parametrize("recipe", ["demo", "instructions"])
def test_a_recipe_for_a_cpu_needs_no_more_memory_than_it_says_however_much_is_free(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 64 * 2**30)
    promise = re.search(
        r"hardware: .* (\d+) GiB of memory", (RECIPES / f"{recipe}.yaml").read_text()
    )
    assert promise is not None
    cfg = replace(settings(f"recipe={recipe}", "precision=fp32"), outputs=str(tmp_path))
    recipe_nodes = wire_graph(cfg, tmp_path / "digests.json")
    store = Store(tmp_path)
    needs = {
        name: sum(predicted_parts(node, recipe_nodes, store) or [0.0])
        for name, node in recipe_nodes.items()
    }
    assert max(needs.values()) < 0.85 * int(promise[1]) * 2**30, needs  # the rest is for the system
