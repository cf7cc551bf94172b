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


@pytest.mark.parametrize(
    ("arguments", "losses", "reason"),
    [
        (
            {"label_smoothing": 0.1},
            ["sigmoid", "sft"],
            "dpo.trainer.label_smoothing: .* sigmoid or sft",
        ),
        ({"label_smoothing": 0.1}, ["robust", "sft"], None),
        ({"f_divergence_type": "forward_kl"}, ["sft"], "dpo.trainer.f_divergence_type: .* sft"),
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
