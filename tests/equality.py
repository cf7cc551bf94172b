"""One step of a TRL trainer with all its results, and a test for the equality of two such steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import Trainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from stages.training.micro_batches import MicroBatches, StepRows

MOST_TOKENS = 10**6  # of a micro-batch
AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-5}
# what agrees in one agrees in the other
DTYPES = [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]
TOKENS = "token/"  # prefix of the names of values per token


class Float64(TorchFunctionMode):
    """A mode in which norms, rotary angles and TRL's head compute in float64; otherwise they always use fp32."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double

        def wide(value):
            return torch.float64 if value is torch.float32 else value

        return function(
            *map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()}
        )


@contextmanager
def exact(dtype: torch.dtype) -> Iterator[None]:
    """Compute a float64 model without any fp32. Autograd ignores the mode, so the head's backward enters it itself."""
    if dtype is not torch.float64:
        yield
        return
    backward = ChunkedLogProbFunction.backward

    def wide(*args: Any) -> Any:
        with Float64():
            return backward(*args)

    with pytest.MonkeyPatch.context() as patch, Float64():
        patch.setattr(ChunkedLogProbFunction, "backward", staticmethod(wide))
        yield


def step(trainer: Trainer, rows: list[dict[str, Any]], **options: Any) -> dict[str, torch.Tensor]:
    """Run one micro-batch forward and backward through TRL's collator and loss.

    Returns by name the loss, the metrics, the head's values per token, and the gradient of every parameter.
    """
    model = trainer.model.train()
    model.zero_grad()
    trainer._metrics["train"].clear()
    heads: list[Any] = []
    watched = model.register_forward_hook(lambda module, args, output: heads.append(output))
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    with exact(model.dtype):
        loss = trainer.compute_loss(model, batch, **options)
        loss.backward()
    watched.remove()
    tokens = {
        TOKENS + name: v.detach() for name, v in heads[0].items() if v is not None and v.dim() == 2
    }
    metrics = {name: torch.tensor(values[-1]) for name, values in trainer._metrics["train"].items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **tokens, **metrics, **gradients}


def assert_equal(padded: dict[str, torch.Tensor], packed: dict[str, torch.Tensor]) -> None:
    """Assert that two steps agree within AGREEMENT.

    The tolerance of a value is relative to its largest element, at least 1. The tolerance of a gradient is relative to
    its norm, at least a millionth of the largest norm, because some gradients are 0 except for rounding.
    """
    assert padded.keys() == packed.keys()
    tolerance = AGREEMENT[padded["loss"].dtype]
    steepest = max(
        float(v.double().norm()) for name, v in padded.items() if name.endswith("weight")
    )
    for name, value in padded.items():
        padded_value, packed_value = value.double(), packed[name].double()
        if name.endswith("weight"):
            gap, scale = (
                (packed_value - padded_value).norm(),
                max(float(padded_value.norm()), 1e-6 * steepest),
            )
        else:
            gap, scale = (
                (packed_value - padded_value).abs().max(),
                max(float(padded_value.abs().max()), 1.0),
            )
        assert gap <= tolerance * scale, f"{name}: {float(gap) / scale:.2g}"


def assert_metrics_do_not_depend_on_memory(
    trainer: MicroBatches, rows: list[dict[str, Any]], budgets: Sequence[int]
) -> dict[str, float]:
    """Check that a step has the same metrics in one micro-batch and within these token budgets, which divide the rows
    unevenly. Return the metrics."""
    whole = metrics_of_a_step(trainer, rows, MOST_TOKENS)
    for budget in budgets:
        divided = metrics_of_a_step(trainer, rows, budget)
        assert divided == pytest.approx(whole, rel=1e-4, abs=1e-5), budget
    return whole


def metrics_of_a_step(
    trainer: MicroBatches, rows: list[dict[str, Any]], budget: int
) -> dict[str, float]:
    """Return the metrics of a step on these rows, in micro-batches within the budget. The weights stay."""
    runtime = replace(trainer.cfg.runtime, micro_batch="auto")
    trainer.cfg = replace(trainer.cfg, runtime=runtime)
    trainer.token_budget = budget
    trainer._total_train_tokens = 0
    steps, items = trainer.get_batch_samples(iter([StepRows(rows)]), 1, trainer.args.device)
    trainer.training_step(trainer.model, steps[0], items)
    metrics = trainer.summarize("train")
    trainer.forget_metrics("train")
    return metrics
