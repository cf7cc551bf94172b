"""TRL's metrics of an optimizer step in micro-batches, as means over the whole step.

TRL gathers each micro-batch's mean from all processes and logs the plain mean of those means, whatever their sizes.
Here no process gathers anything before its micro-batches are done. Then every mean is weighted by the number of pairs
or tokens that it is over, and one reduction over the processes gives the mean of the step.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import Trainer

Batch = dict[str, torch.Tensor]


@contextlib.contextmanager
def of_step(trainer: Trainer, batches: list[Batch], weight: Callable[[str, Batch], int]) -> Iterator[None]:
    """Wrap the micro-batches `batches` of a step, and replace the means that TRL appended for them by those over the
    step in all processes. `weight(name, batch)` is how many items of a batch the metric `name` is a mean over."""
    accelerator, found = trainer.accelerator, trainer._metrics["train"]
    seen = trainer._total_train_tokens
    found.clear()
    vars(accelerator).update(gather=unchanged, gather_for_metrics=unchanged)
    try:
        yield
    except BaseException:
        trainer._total_train_tokens = seen
        raise
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
    names = [name for name in found if name != "num_tokens"]
    weights = [[weight(name, batch) for batch in batches] for name in names]
    sums = [sum(v * w for v, w in zip(found[name], ws, strict=True)) for name, ws in zip(names, weights, strict=True)]
    mine = [*zip(sums, map(sum, weights), strict=True), (trainer._total_train_tokens - seen, 1)]
    table = torch.tensor(mine, dtype=torch.float64, device=accelerator.device)
    *means, (tokens, _) = accelerator.reduce(table, "sum").tolist()
    found |= {name: [value / max(1, count)] for name, (value, count) in zip(names, means, strict=True)}
    trainer._total_train_tokens = seen + int(tokens)
    found["num_tokens"] = [trainer._total_train_tokens]


def unchanged(tensor: Any) -> Any:
    """Stands in for accelerate's `gather` while a process works on its own."""
    return tensor
