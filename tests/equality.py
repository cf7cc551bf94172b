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
    """Log-probs and metrics relative to the largest of them, at least 1. A gradient in its norm, relative to its own,
    at least a millionth of the largest of all, as some are 0 but for rounding."""
    assert padded.keys() == packed.keys()
    tolerance = AGREEMENT[padded["loss"].dtype]
    steepest = max(float(v.double().norm()) for name, v in padded.items() if name.endswith("weight"))
    for name, value in padded.items():
        theirs, ours = value.double(), packed[name].double()
        if name.endswith("weight"):
            gap, scale = (ours - theirs).norm(), max(float(theirs.norm()), 1e-6 * steepest)
        else:
            gap, scale = (ours - theirs).abs().max(), max(float(theirs.abs().max()), 1.0)
        assert gap <= tolerance * scale, f"{name}: {float(gap) / scale:.2g}"
