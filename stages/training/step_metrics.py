"""TRL's metrics of a step that was done in micro-batches: its means, and no means of means.

TRL appends a mean for every micro-batch, over all processes, and logs the plain mean of those. Here a process keeps to
itself until its micro-batches are done; then each mean counts by how many things it is of.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import Trainer

Batch = dict[str, torch.Tensor]


@contextlib.contextmanager
def of_step(trainer: Trainer, batches: list[Batch], weight: Callable[[str, Batch], int]) -> Iterator[None]:
    """Around a step: put its means over all processes where TRL appends those of `batches` in this one. `weight` says
    of how many things in a batch the metric of that name is the mean."""
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
    return tensor
