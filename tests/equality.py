"""One step of a TRL trainer with everything that comes of it, and when two such steps are equal."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import Trainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-5}
TOKENS = "token/"  # what begins the names of values per token


class Float64(TorchFunctionMode):
    """Norms, rotary angles and TRL's head compute in fp32 whatever the weights; in this mode, in float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        wide = lambda value: torch.float64 if value is torch.float32 else value
        return function(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


@contextmanager
def exact(dtype: torch.dtype) -> Iterator[None]:
    """For a model in float64, nothing in fp32. Autograd does not know the mode: the head's backward enters it."""
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
    """One micro-batch through TRL's collator and loss, and back: loss, metrics, the head's values per token, and the
    gradient of every parameter, by name."""
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
    tokens = {TOKENS + name: v.detach() for name, v in heads[0].items() if v is not None and v.dim() == 2}
    metrics = {name: torch.tensor(values[-1]) for name, values in trainer._metrics["train"].items()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **tokens, **metrics, **gradients}


def assert_equal(padded: dict[str, torch.Tensor], packed: dict[str, torch.Tensor]) -> None:
    """Relative to the largest value of each: of log-probs and metrics, at least 1; of a gradient, at least a
    millionth of the largest of all, as some are 0 but for rounding."""
    assert padded.keys() == packed.keys()
    tolerance = AGREEMENT[padded["loss"].dtype]
    largest = {name: float(value.double().abs().max()) for name, value in padded.items()}
    steepest = max(value for name, value in largest.items() if name.endswith("weight"))
    for name, theirs in padded.items():
        scale = max(largest[name], 1e-6 * steepest if name.endswith("weight") else 1.0)
        gap = float((theirs.double() - packed[name].double()).abs().max())
        assert gap <= tolerance * scale, f"{name}: {gap / scale:.2g}"
