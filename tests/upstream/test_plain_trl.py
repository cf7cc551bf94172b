"""Tests of the claim that plain TRL follows our first steps, from the same weights on the same rows."""

from pathlib import Path
from typing import Any

import pytest

from stages.models import lm_head, packing
from stages.pipeline import build as building
from stages.store.store import Store
from stages.store.workspace import StageDir
from tests.helpers import TINY, Chain, settings
from tests.helpers import nodes as tiny_nodes
from tests.upstream import plain_trl
from tests.upstream.plain_trl import FirstSteps

TEN_STEPS = {"sft": (), "dpo": ("dpo.epochs=2",)}
OUR_FORWARD = {
    "sft": {"CPULogProbFunction"},
    "dpo": {"CPULogProbFunction", "PackedPairs"},
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Parts of our own forward that a comparison uses, with the side: the LM head, the packed pairs."""
    names, side, train_trl = set[str](), ["ours"], plain_trl.train_trl

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any) -> Any:
            names.add(f"{owner.__name__} {side[0]}")
            return function(*args)

        is_static = isinstance(vars(owner)[name], staticmethod)
        monkeypatch.setattr(owner, name, staticmethod(watched) if is_static else watched)

    def on_trls_side(*args: Any) -> FirstSteps:
        side[0] = "TRL"
        return train_trl(*args)

    watch(lm_head.CPULogProbFunction, "forward")
    watch(packing.PackedPairs, "pack")
    monkeypatch.setattr(plain_trl, "train_trl", on_trls_side)
    return names


def train_both(
    root: Path, scratch: Path, stage: str, *overrides: str
) -> tuple[FirstSteps, FirstSteps]:
    """Build the inputs of a stage, and train its first ten steps on both sides."""
    overrides = (f"stage={stage}", *overrides)
    node, store = tiny_nodes(root, *overrides)[stage], Store(root)
    cfg = settings(*TINY, *overrides)
    building.build([*node.inputs.values()], store, cfg, [*TINY, *overrides])
    inputs = {role: store.folder(each) for role, each in node.inputs.items()}
    if "reference" in inputs:
        reference = node.inputs["reference"].inputs["reference"]
        inputs["reference_model"] = store.folder(reference) / "model"
    scratch.mkdir()
    out = StageDir(scratch, lambda metrics, step: None)
    return plain_trl.train_both(node.config, inputs, out, 10)


def assert_close(own: FirstSteps, trl: FirstSteps, tolerance: float = 1e-5) -> None:
    """Assert that all losses agree, that the training moved, and that weights stayed together."""
    assert len(own.figures) == len(trl.figures) == len(own.trained) > 1
    assert own.trained == trl.trained and all(own.trained)
    for figures, trl_figures in zip(own.figures, trl.figures, strict=True):
        assert figures["loss"] == pytest.approx(trl_figures["loss"], abs=tolerance)
        norm = pytest.approx(trl_figures["grad_norm"], rel=10 * tolerance, abs=10 * tolerance)
        assert figures["grad_norm"] == norm
    assert len({figures["loss"] for figures in own.figures}) == len(own.figures)
    assert own.weights.keys() == trl.weights.keys()


@pytest.mark.parametrize("stage", TEN_STEPS)
def test_plain_trl_follows_ten_steps(
    stage: str, chain: Chain, tmp_path: Path, used: set[str]
) -> None:
    own, trl = train_both(chain.root, tmp_path / "scratch", stage, *TEN_STEPS[stage])
    assert len(own.figures) == 10
    assert_close(own, trl)
    assert used == {f"{name} ours" for name in OUR_FORWARD[stage]}
