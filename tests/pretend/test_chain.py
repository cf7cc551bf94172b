"""The tiny chain on the pretended accelerator equals the CPU's, without a tensor on the wrong device."""

from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file

from stages.store.records import Candidate, PairLogProbs, load
from tests.helpers import Chain, build
from tests.pretend.flows import run_stage, train_steps

pytestmark = pytest.mark.extended

LONG_CASES = [
    ("sft", ("sft.packing=true", "sft.max_length=128", "sft.adapter=lora")),
    ("dpo", ("dpo.forward=padded", "dpo.adapter=lora")),
    ("dpo", ("dpo.loss_type=[sigmoid,sft]", "dpo.runtime.micro_batch=1")),
    ("reward", ()),
    ("reward", ("reward.adapter=lora", "reward.forward=padded")),
]


def weight_gap(a: Path, b: Path) -> float:
    """Return the largest difference of a weight of two model folders."""
    weights, expected = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    assert weights.keys() == expected.keys()
    return max(float((weights[name] - expected[name]).abs().max()) for name in weights)


def test_the_chain_up_to_dpo_equals_the_cpus(
    pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    """Training differs by the order of sums: packed attention is one padded call, and the head is TRL's."""
    root = tmp_path / "outputs"
    with pretend.strict():
        build(root, "stage=dpo")
    here, on_cpu = Chain(root), Chain(built)
    for stage in ("sft", "sample", "reference", "dpo"):
        assert here.manifest(stage)["metrics"]["device"].startswith("pretend"), stage
    assert weight_gap(here.folder("sft"), on_cpu.folder("sft")) < 1e-5
    candidates = [
        load(each.folder("sample") / "candidates.parquet", Candidate) for each in (here, on_cpu)
    ]
    assert [c.token_ids for c in candidates[0]] == [c.token_ids for c in candidates[1]]
    for result, expected in zip(*candidates, strict=True):
        assert result.logprob == pytest.approx(expected.logprob, abs=1e-4)
    scored = [
        load(each.folder("reference") / "logprobs.parquet", PairLogProbs) for each in (here, on_cpu)
    ]
    for result, expected in zip(*scored, strict=True):
        assert result.chosen_logps == pytest.approx(expected.chosen_logps, abs=1e-4)
        assert result.rejected_logps == pytest.approx(expected.rejected_logps, abs=1e-4)
    assert weight_gap(here.folder("dpo"), on_cpu.folder("dpo")) < 1e-4


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("sft", ("sft.packing=true", "sft.max_length=128")),
        ("dpo", ("dpo.forward=padded",)),
        ("dpo", ("dpo.adapter=lora",)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG_CASES),
    ],
)
def test_gradients_of_the_first_step_equal_the_cpus(
    stage: str, overrides: tuple[str, ...], pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    """A loss may be equal while a parameter misses a part of its gradient, as tied weights that came apart do."""
    with pretend.available(False):
        (expected,) = train_steps(1, stage, built, tmp_path / "cpu", *overrides)
    with pretend.strict():
        (gradients,) = train_steps(1, stage, built, tmp_path / "pretend", *overrides)
    assert len(gradients) == len(expected)
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient.cpu() - other).norm() <= 1e-5 * other.norm(), tuple(other.shape)


def test_weights_of_pairs_leave_the_loss_readable(
    pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    """WPO computes the weights from figures that stay on the device, and Trainer reads the loss."""
    weighted = ("+dpo.trainer.use_weighting=true", "dpo.batch_size=16")
    with pretend.strict():
        run_stage("dpo", built, tmp_path / "pretend", *weighted)
    with pretend.available(False):
        run_stage("dpo", built, tmp_path / "cpu", *weighted)
    assert weight_gap(tmp_path / "pretend", tmp_path / "cpu") < 1e-4
