"""Tests of micro-batches on real trainers: the budget holds, results are equal, and a step repeats without memory."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from stages import dpo, sft
from stages.config.blocks.arguments import DPOArguments, SFTArguments
from stages.config.blocks.training import DPO, SFT
from stages.config.choices import Checkpointing, Forward, Precision
from stages.config.errors import UserError
from stages.store.workspace import StageDir, read_curves
from tests.equality import assert_metrics_do_not_depend_on_memory
from tests.helpers import settings
from tests.stages.test_sft import some_rows
from tests.upstream.parts import Parts

STAGES = {"sft": sft, "dpo": dpo}
# Adam's first step divides a gradient by its size plus ε. With ε = 1e-8, the rounding error of a gradient near 0 moved
# one weight by 1.6e-5 on a processor with AVX-512; with 1e-6, all weights agree within 5e-7.
EPSILON = 1e-6
CLOCK = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


@pytest.fixture
def inputs(built: Path) -> dict[str, dict[str, Path]]:
    """Return the inputs of either stage in the tiny chain."""
    folder = {
        name: next((built / name).glob("*/manifest.json")).parent
        for name in ("base", "data", "sft", "pairs")
    }
    folder["reference"] = next((built / "reference").glob("*/manifest.json")).parent
    policy = {"policy": folder["sft"], "pairs": folder["pairs"], "reference": folder["reference"]}
    return {"sft": {"base": folder["base"], "data": folder["data"]}, "dpo": policy}


def block(name: str, **runtime: Any) -> SFT | DPO:
    cfg = vars(settings("recipe=tiny"))[name]
    cfg = replace(cfg, precision=Precision.fp32, epochs=1.0, evaluations=1, learning_rate=1e-3)
    return replace(cfg, runtime=replace(cfg.runtime, **runtime))


def train(
    cfg: SFT | DPO, inputs: dict[str, dict[str, Path]], folder: Path
) -> tuple[dict[str, torch.Tensor], StageDir]:
    folder.mkdir()
    out, name = (
        StageDir(folder, lambda metrics, step: None),
        "dpo" if isinstance(cfg, DPO) else "sft",
    )
    STAGES[name].run(cfg, inputs[name], out)
    return load_file(folder / "model" / "model.safetensors"), out


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def alike(curves: list[dict[str, float]], other_curves: list[dict[str, float]]) -> None:
    """Compare all figures of two curves. Before the first update the rewards of a pair are equal, so their order is
    random."""
    for a, b in zip(curves, other_curves, strict=True):
        assert a.keys() == b.keys()
        names = a.keys() - CLOCK
        if a["step"] <= 1:
            names = {name for name in names if not name.endswith("accuracies")}
        assert [a[name] for name in names] == pytest.approx(
            [b[name] for name in names], abs=1e-4, rel=1e-4
        )


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "changes", "budgets"),
    [
        pytest.param("sft", {"batch_size": 32}, (90,), marks=pytest.mark.slow),
        pytest.param(
            "sft",
            {"batch_size": 8, "packing": True, "max_length": 128},
            (300,),
            marks=pytest.mark.slow,
        ),
        (
            "dpo",
            {
                "batch_size": 16,
                "loss_type": ["sigmoid", "sft"],
                "loss_weights": [1.0, 0.5],
                "trainer": DPOArguments(adam_epsilon=EPSILON),
            },
            (250, 1),
        ),
    ],
)
def test_no_budget_changes_weights_or_curves(
    name: str,
    changes: dict[str, Any],
    budgets: tuple[int, ...],
    inputs: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """Weights, losses and norms are equal in fp32, also of a model that takes no number of items."""
    # as Gemma 3n's class has it
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    cfg = replace(block(name, micro_batch=changes["batch_size"]), **changes)
    whole, out = train(cfg, inputs, tmp_path / "whole")
    curves = read_curves(out.path)
    assert {"loss", "grad_norm", "entropy", "num_tokens", "mean_token_accuracy"} <= set(curves[1])
    for budget in budgets:
        divided = replace(cfg, runtime=block(name, token_budget=budget).runtime)
        seen: list[int] = []

        def count(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], seen: list[int] = seen
        ) -> None:
            if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled():
                seen.append(inputs[0].numel())

        hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
        weights, out = train(divided, inputs, tmp_path / f"{budget}")
        hook.remove()
        assert distance(weights, whole) < 1e-5
        alike(read_curves(out.path), curves)
        steps = sum("loss" in point for point in curves)
        assert (
            len(seen) == steps * cfg.batch_size
            if budget == 1
            else max(seen) <= budget and len(seen) > steps
        )


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_no_budget_changes_a_metric_of_a_step(objective: str, tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    if objective == "sft":
        trainer = parts.supervised("auto")
    else:
        trainer = parts.build_trainer(shift=0.3, forward=Forward.shared_prefix)
    with torch.no_grad():  # else every token of the random model has the same entropy
        for parameter in trainer.model.parameters():
            parameter.mul_(5)
    rows = [*trainer.train_dataset]
    lengths = sorted(map(trainer.count_tokens, rows))
    metrics = assert_metrics_do_not_depend_on_memory(trainer, rows, [lengths[-1], 2 * lengths[-1]])
    assert metrics.keys() >= {"entropy", "mean_token_accuracy", "num_tokens"}
    assert objective == "sft" or metrics.keys() >= {"rewards/margins", "logps/chosen"}


def same_after_halving(folder: Path, warning: str) -> None:
    """Check that the trainings in `whole` and `halved` have equal weights and curves, and that it is told."""
    assert re.search(r"out of memory at step \d, .* at most \d+ tokens", warning)
    a, b = (
        load_file(folder / name / "model" / "model.safetensors") for name in ("whole", "halved")
    )
    assert distance(a, b) < 1e-5
    alike(read_curves(folder / "halved"), read_curves(folder / "whole"))
    tokens, checkpointing = json.loads((folder / "halved" / "scratch" / "budget.json").read_text())
    assert f"at most {tokens} tokens" in warning, "a resume begins with what fits"
    assert checkpointing == "none"


@pytest.mark.extended
def test_out_of_memory_the_step_is_done_again_with_half(inputs: Any, tmp_path: Path) -> None:
    """The second forward fails as the allocator does, when the first part of the step has left its gradients."""
    inputs["sft"] = some_rows(inputs["sft"], 128, tmp_path / "data")
    cfg = replace(
        block("sft", token_budget=500), batch_size=64, trainer=SFTArguments(warmup_steps=1)
    )
    train(cfg, inputs, tmp_path / "whole")
    sizes = list[int]()

    def fail(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled():
            sizes.append(arguments[0].numel())
            if len(sizes) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(fail)
    _, out = train(cfg, inputs, tmp_path / "halved")
    hook.remove()
    assert max(sizes[2:]) <= sizes[1] // 2 <= 250
    same_after_halving(tmp_path, out.warnings[-1])


def test_a_single_row_out_of_memory_recomputes_more_until_nothing_helps(tmp_path: Path) -> None:
    trainer = Parts(tmp_path).supervised("auto")
    trainer.checkpointing = Checkpointing.none
    row = trainer.train_dataset[0]
    for kind in (Checkpointing.selective, Checkpointing.full):
        trainer.make_room(trainer.model, [row])
        assert trainer.checkpointing is kind
    with pytest.raises(UserError, match=r"1 rows with \d+ tokens.*: lower sft.max_length"):
        trainer.make_room(trainer.model, [row])
