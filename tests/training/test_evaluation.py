"""Tests of what is evaluated: the loss that orders models."""

from pathlib import Path

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
