"""The table of DPO's arguments and the losses that read them, row by row against TRL: a loss is another with another
value of an argument exactly where the table says that the argument is read."""

from dataclasses import replace
from typing import Any

import pytest

from stages.config.blocks.arguments import DPOArguments
from stages.config.choices import LOSS_TYPES
from stages.config.errors import UserError
from stages.config.trainers import unread_argument, validate_trainer
from tests.helpers import TINY, settings
from tests.upstream.parts import Parts, loss_of

OF_LOSSES = {"label_smoothing": 0.2, "discopop_tau": 0.5, "f_divergence_type": "js_divergence"}


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_a_loss_is_another_by_what_it_reads(loss: str, parts: Parts) -> None:
    def value(**changes: Any) -> float | None:
        arguments = {"label_smoothing": 0.05, **changes}
        try:
            return loss_of(
                parts.build_trainer(shift=0.7, loss_type=[loss], trainer=DPOArguments(**arguments))
            )
        except ValueError as error:
            assert "f_divergence_type" in str(error)  # validate_trainer refuses it
            return None

    plain = value()
    for argument, other in OF_LOSSES.items():
        changed = value(**{argument: other})
        block = parts.block(loss_type=[loss], trainer=DPOArguments(**{argument: other}))
        read = unread_argument(block) is None
        assert read is (changed not in (None, plain)), argument


def test_a_loss_of_weight_0_reads_nothing(parts: Parts) -> None:
    def value(smoothing: float, weight: float) -> float:
        changes = {"loss_type": ["sigmoid", "robust"], "loss_weights": [1.0, weight]}
        loss = loss_of(
            parts.build_trainer(
                shift=0.7, trainer=DPOArguments(label_smoothing=smoothing), **changes
            )
        )
        assert (
            unread_argument(parts.block(trainer=DPOArguments(label_smoothing=0.2), **changes))
            is None
        ) is (weight > 0)
        return loss

    assert value(0.0, 0.0) == value(0.2, 0.0)
    assert value(0.0, 0.5) != value(0.2, 0.5)


@pytest.mark.parametrize(
    ("arguments", "losses", "reason"),
    [
        (
            {"label_smoothing": 0.1},
            ["sigmoid", "sft"],
            "dpo.trainer.label_smoothing: .* robust, exo_pair, aot",
        ),
        ({"label_smoothing": 0.1}, ["robust", "sft"], None),
        ({"label_smoothing": 0.0}, ["sigmoid"], None),  # TRL's default changes nothing
        ({"f_divergence_type": "forward_kl"}, ["sft"], "dpo.trainer.f_divergence_type: .* sigmoid"),
    ],
)
def test_an_argument_that_no_loss_reads_is_refused(
    arguments: dict[str, Any], losses: list[str], reason: str | None
) -> None:
    cfg = settings(*TINY).dpo
    block = replace(cfg, trainer=replace(cfg.trainer, **arguments), loss_type=losses)
    if reason is None:
        validate_trainer("dpo", block)
        return
    with pytest.raises(UserError, match=reason):
        validate_trainer("dpo", block)
