"""The keys of a loss of pairs, whoever makes the pairs."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.objective import Training
from stages.config.limits import positive, words


@dataclass
class PairLoss(Training):
    """The losses of TRL's DPOTrainer."""

    beta: float = positive()
    loss_type: list[str] = words(*choices.LOSS_TYPES)
    loss_weights: list[float] | None = MISSING
    first_difference: bool = MISSING
    trainer: DPOArguments = field(default_factory=DPOArguments)

    @property
    def depends_on_micro_batch(self) -> bool:
        """True also for `aot` losses."""
        # they sort the pairs of a micro-batch (arXiv:2406.05882)
        has_aot_loss = not {"aot", "aot_unpaired"}.isdisjoint(self.loss_type)
        return super().depends_on_micro_batch or has_aot_loss

    @property
    def has_trl_loss(self) -> bool:
        """True if TRL computes the loss."""
        return True

    @property
    def loss_names(self) -> str:
        """The losses, as a sentence names them."""
        return " or ".join(self.loss_type)
