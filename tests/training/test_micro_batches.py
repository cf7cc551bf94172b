"""Tests of micro-batches on real trainers: the budget holds, results are equal, and a step repeats without memory."""

import json
import multiprocessing
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from stages import dpo, sft
from stages.config.blocks.arguments import DPOArguments, SFTArguments
from stages.config.blocks.training import DPO, SFT
from stages.config.choices import Checkpointing, Precision
from stages.config.errors import UserError
from stages.models.packing import PackedPairs
from stages.models.run_attention import RunLayout
from stages.models.scoring import divide_rows
from stages.store.workspace import StageDir, read_curves
from stages.training.arguments import training_arguments
from stages.training.budget import decide_open_settings, out_of_memory_error, write_decision
from stages.training.micro_batches import MicroBatches
from tests.helpers import settings
from tests.stages.test_sft import some_rows

STAGES = {"sft": sft, "dpo": dpo}
PLENTY = 2**40  # bytes
# Adam's first step divides a gradient by its size plus ε. With ε = 1e-8, the rounding error of a gradient near 0 moved
# one weight by 1.6e-5 on a processor with AVX-512; with 1e-6, all weights agree within 5e-7.
EPSILON = 1e-6
Under = Callable[[int, SFT | DPO, Any, Path], tuple[list[str], int]]


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
    """Compare what two curves say of losses and gradients. Other metrics are means of micro-batches' means, and at equal
    rewards an accuracy is a coin's."""
    for a, b in zip(curves, other_curves, strict=True):
        names = {
            "loss",
            "grad_norm",
            "eval_loss",
            "eval_rewards/margins",
            "learning_rate",
        } & b.keys()
        assert {name: a[name] for name in names} == pytest.approx(
            {name: b[name] for name in names}, abs=1e-4, rel=1e-4
        )


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=40),
    st.integers(1, 200),
    st.booleans(),
    st.integers(1, 40),
)
def test_rows_are_divided_once_within_the_budget(
    lengths: list[int], budget: int, padded: bool, least: int
) -> None:
    costs, least = sorted(lengths, reverse=True), min(least, len(lengths))
    groups = divide_rows(costs, budget, padded, least)
    assert [i for group in groups for i in group] == [*range(len(costs))]
    assert len(groups) >= least
    for group in groups:
        cost = len(group) * costs[group[0]] if padded else sum(costs[i] for i in group)
        assert cost <= budget or len(group) == 1


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


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "changes"), [("sft", {"packing": True, "max_length": 128}), ("dpo", {})]
)
def test_no_forward_reads_the_lengths_of_runs(
    name: str, changes: dict[str, Any], inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward would wait for the device to read them. So every batch comes with a layout, from the CPU."""
    depth, depths = [0], list[int]()

    def deepen(by: int) -> Callable[..., None]:
        return lambda *_: depth.__setitem__(0, depth[0] + by)

    for owner, function in ((PackedPairs, "from_batch"), (RunLayout, "from_positions")):
        original = getattr(owner, function)
        monkeypatch.setattr(
            owner, function, lambda *a, call=original: (depths.append(depth[0]), call(*a))[1]
        )
    every_module = torch.nn.modules.module
    before = every_module.register_module_forward_pre_hook(deepen(1))
    after = every_module.register_module_forward_hook(deepen(-1))
    _, out = train(
        replace(block(name, micro_batch=2), batch_size=4, **changes), inputs, tmp_path / "out"
    )
    before.remove()
    after.remove()
    steps = sum("loss" in point for point in read_curves(out.path))
    assert len(depths) >= 2 * steps > 0 and not any(depths)


def address_space(name: str) -> int:
    """Return this process's VmSize now and its VmPeak so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024


def child(results: Connection, cfg: SFT | DPO, inputs: Any, folder: Path, room: int) -> None:
    """Train with at most `room` bytes for a step above the memory at its beginning: torch's allocator then fails."""
    step, steps = MicroBatches.training_step, [0]

    def bounded(*args: Any, **kwargs: Any) -> torch.Tensor:
        before = address_space("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (before + room, resource.RLIM_INFINITY))
        try:
            return step(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            steps.append(address_space("VmPeak") - before)

    MicroBatches.training_step = bounded  # type: ignore[method-assign]  # of this process alone
    try:
        _, out = train(cfg, inputs, folder)
    except UserError as error:
        return results.send(([str(error)], max(steps)))
    results.send((out.warnings, max(steps)))


@pytest.fixture(scope="module")
def under() -> Iterator[Under]:
    """Train in a separate process with limited memory for a step, and return its warnings and a step's address space.

    The processes are forked from a new one, in which tensors get new pages: this process may have any amount of free
    heap, which no limit covers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**16))
        forkserver.ensure_running()

    def run(room: int, cfg: SFT | DPO, inputs: Any, folder: Path) -> tuple[list[str], int]:
        receiver, sender = context.Pipe()
        process = context.Process(target=child, args=(sender, cfg, inputs, folder, room))
        process.start()
        sender.close()
        result: tuple[list[str], int] = receiver.recv()
        process.join()
        return result

    yield run
    forkserver._forkserver._stop()  # wait for the fork server, whose processes' memory counts here


def deepen(inputs: Any, folder: Path) -> None:
    """Prepare SFT of a model with so many layers that activations take most memory, on half of the rows."""
    inputs["sft"] = some_rows(inputs["sft"], 128, folder / "data")
    base = shutil.copytree(inputs["sft"]["base"], folder / "base") / "model"
    config = AutoConfig.from_pretrained(base, num_hidden_layers=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    inputs["sft"]["base"] = base.parent


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


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="a process's memory is bounded by Linux's means"
)
def test_where_the_allocator_fails_the_step_is_done_again_with_half(
    under: Under, inputs: Any, tmp_path: Path
) -> None:
    deepen(inputs, tmp_path)
    # Two steps, the first with learning rate 0: with rounding errors alone, Adam would take their sign.
    whole = replace(
        block("sft", token_budget=10**6), batch_size=64, trainer=SFTArguments(warmup_steps=1)
    )
    parts = replace(whole, runtime=replace(whole.runtime, token_budget=200))
    _, most = under(PLENTY, whole, inputs, tmp_path / "whole")
    _, least = under(PLENTY, parts, inputs, tmp_path / "parts")
    (*_, warning), _ = under((most + least) // 2, whole, inputs, tmp_path / "halved")
    same_after_halving(tmp_path, warning)
    a, b = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")
    )
    assert distance(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="a process's memory is bounded by Linux's means"
)
def test_out_of_memory_for_a_single_row(under: Under, inputs: Any, tmp_path: Path) -> None:
    """Packed rows: first the backward recomputes ever more activations, then an error names the setting to change."""
    deepen(inputs, tmp_path)
    cfg = replace(block("sft", token_budget=1), packing=True, max_length=2**12, batch_size=1)
    recomputed = replace(
        cfg, runtime=replace(cfg.runtime, gradient_checkpointing=Checkpointing.full)
    )
    _, most = under(PLENTY, cfg, inputs, tmp_path / "kept")
    _, least = under(PLENTY, recomputed, inputs, tmp_path / "recomputed")
    for kind, room in (("selective", most * 3 // 4), ("full", least * 3 // 2)):
        (*_, warning), _ = under(room, cfg, inputs, tmp_path / kind)
        assert warning.endswith(f"gradient checkpointing {kind}.")
        a, b = (
            load_file(tmp_path / name / "model" / "model.safetensors") for name in ("kept", kind)
        )
        assert distance(a, b) < 1e-5
    (warning, *_), _ = under(least // 4, cfg, inputs, tmp_path / "less")
    assert re.search(r"at step \d: .* 1 rows with \d+ tokens.*: lower sft.max", warning)


@pytest.mark.parametrize(
    ("runtime", "rows", "way_out"),
    [
        ({"micro_batch": 4}, 4, "lower dpo.runtime.micro_batch (now 4)"),
        ({"micro_batch": 1}, 1, "set dpo.runtime.gradient_checkpointing=full"),
        ({"processes": 2}, 4, "set dpo.runtime.token_budget=450"),
    ],
)
def test_the_way_out_of_memory_is_told(runtime: dict[str, Any], rows: int, way_out: str) -> None:
    assert way_out in str(
        out_of_memory_error(block("dpo", **runtime), 3, rows, 900, Checkpointing.none)
    )


@pytest.mark.slow
def test_a_resume_goes_on_with_the_budget_it_had(inputs: Any, tmp_path: Path) -> None:
    out, model = StageDir(tmp_path, lambda metrics, step: None), inputs["sft"]["base"] / "model"

    def decided(**runtime: Any) -> tuple[int | None, Checkpointing]:
        cfg = block("dpo", **runtime)
        args = training_arguments(cfg, out)
        runtime_settings = decide_open_settings(cfg, args, model, out).runtime
        assert args.gradient_checkpointing == (
            runtime_settings.gradient_checkpointing is Checkpointing.full
        )
        return runtime_settings.token_budget, runtime_settings.gradient_checkpointing

    first = decided()
    assert json.loads((tmp_path / "scratch" / "budget.json").read_text()) == [*first]
    write_decision(out, 300, Checkpointing.full)
    assert decided() == (300, Checkpointing.full)
    assert decided(token_budget=200, gradient_checkpointing=Checkpointing.none) == (
        200,
        Checkpointing.none,
    )
    assert decided(micro_batch=2) == (None, Checkpointing.none)
