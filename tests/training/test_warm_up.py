"""Tests of the learning rate in short trainings, on a real trainer."""

import math
from typing import Any

import pytest

from stages.training.trainer import LEAST_WARMUP
from tests.upstream.parts import Parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


def rates(parts: Parts, steps: int, **trl: Any) -> list[float]:
    """Return the learning rate of every step, as a share of the highest."""
    trainer = parts.supervised(4)
    for name, value in {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, **trl}.items():
        setattr(trainer.args, name, value)
    trainer.create_optimizer_and_scheduler(steps)
    rates_by_step = []
    for _ in range(steps):
        rates_by_step.append(trainer.lr_scheduler.get_last_lr()[0] / trainer.args.learning_rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates_by_step


@pytest.mark.parametrize("kind", ["cosine", "constant_with_warmup"])
@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_a_short_training_climbs_to_its_rate(kind: str, steps: int, parts: Parts) -> None:
    factors = rates(parts, steps, lr_scheduler_type=kind)
    climbing = min(LEAST_WARMUP, math.ceil(steps / 2))
    assert factors[:climbing] == pytest.approx(
        [(k / (climbing + 1)) ** 2 for k in range(1, climbing + 1)]
    )
    assert min(factors) > 0
    if steps > climbing:
        assert factors[climbing] == max(factors) == pytest.approx(1.0)
    assert factors[climbing:] == sorted(factors[climbing:], reverse=True)


def test_a_warm_up_that_outlasts_the_training_is_told(parts: Parts) -> None:
    for steps, warnings in ((11, 0), (10, 1)):
        trainer = parts.supervised(4)
        trainer.args.warmup_steps = 10
        trainer.create_optimizer_and_scheduler(steps)
        assert [
            f"training ends before, after {steps} steps" in each for each in trainer.out.warnings
        ] == [True] * warnings
