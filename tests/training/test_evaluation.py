"""Tests of what is evaluated: the loss that orders models."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from stages.store.workspace import StageDir
from stages.training.callbacks import EvaluationTimes
from tests.helpers import TINY, settings
from tests.upstream.parts import Parts


def test_a_loss_that_is_small_for_improbable_tokens_is_not_evaluated(tmp_path: Path) -> None:
    """Under `dft`, validation has the loss of `nll`: the mean of -p log p has no order of models."""
    parts = Parts(tmp_path)
    losses = dict[str, float]()
    for loss in ("nll", "dft"):
        trainer = parts.supervised(4, loss_type=loss)
        losses[loss] = trainer.evaluate(trainer.train_dataset)["eval_loss"]
        assert trainer.args.loss_type == loss, "training keeps its own"
    assert losses["dft"] == losses["nll"]


@pytest.mark.parametrize(("times", "steps", "evaluated_at"), [(2, 4, [2, 4]), (9, 3, [1, 2, 3])])
def test_every_step_is_evaluated_where_more_evaluations_are_set_than_steps(
    times: int,
    steps: int,
    evaluated_at: list[int],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    cfg = replace(settings(*TINY).dpo, evaluations=times)
    trainer = Parts(tmp_path).supervised(4)
    trainer.eval_dataset = trainer.train_dataset
    trainer.evaluate = lambda: {}  # the times are tested, not the losses
    callback = EvaluationTimes(trainer, cfg, StageDir(tmp_path, lambda metrics, step: None))
    state = TrainerState(max_steps=steps)
    callback.on_train_begin(trainer.args, state, TrainerControl())
    evaluated = list[int]()
    for step in range(1, steps + 1):
        state.global_step = step
        control = TrainerControl()
        callback.on_step_end(trainer.args, state, control)
        if control.should_evaluate:
            evaluated.append(step)
    assert evaluated == evaluated_at
    assert (f"Set dpo.evaluations={steps}." in caplog.text) == (times > steps)
