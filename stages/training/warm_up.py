"""A warm-up for short trainings too: a share of few steps takes the learning rate from 0 to its highest in one."""

import math
from typing import Any

import torch

LEAST = 4  # steps


def climb(asked: float, steps: int) -> int:
    """Over how many of `steps` the rate climbs, where `warmup_steps` asks for a share that comes to fewer than LEAST:
    over LEAST, or half of all. 0 where what is asked for stands: a number of steps, none, a share of more steps."""
    return 0 if not 0 < asked < 1 or asked * steps > LEAST - 1 else min(LEAST, math.ceil(steps / 2))


def without_first(longer: Any, climbing: int) -> Any:
    """A schedule from its second step on: transformers' begin at rate 0, and a short training has no step to lose. It
    climbs as a square does. Adam's first step divides each gradient by its own size, rounding errors included: at a
    quarter of the rate they made weights differ by 1.4e-5 between micro-batches, at a sixteenth by 4.6e-6. A schedule
    that is no function of the step (`reduce_lr_on_plateau`) has no warm-up, and stays as it is."""
    if not isinstance(longer, torch.optim.lr_scheduler.LambdaLR):
        return longer
    later: list[Any] = [
        lambda step, rate=rate: rate(step + 1) * (1 if rate(0) else min(1, (step + 1) / (climbing + 1)))
        for rate in longer.lr_lambdas
    ]
    return torch.optim.lr_scheduler.LambdaLR(longer.optimizer, later)
