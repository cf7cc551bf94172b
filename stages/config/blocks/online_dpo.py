"""The keys of online DPO."""

from dataclasses import dataclass, field

from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.draws import Drawing
from stages.config.blocks.objective import Objective
from stages.config.blocks.pair_loss import PairLoss
from stages.config.errors import UserError
from stages.config.limits import at_least


@dataclass
class OnlineDPO(Drawing, PairLoss):
    """DPO on pairs of draws of the model in training (arXiv:2402.04792; with `sync_every`, semi-online:
    arXiv:2506.21495)."""

    objective = Objective.read("online_dpo")
    pairs: int = at_least(1)
    trainer: DPOArguments = field(default_factory=DPOArguments)

    @property
    def reads_reference(self) -> bool:
        return True

    @property
    def turned_off(self) -> dict[str, str]:
        not_ended = "a completion that does not end is in no pair. Use align=raft"
        all_alike = "scores that do not differ make no pair. Use align=raft"
        return {"truncated": not_ended, "skip": all_alike}

    @property
    def way_to_stay_near(self) -> str:
        return f"raise online_dpo.beta (now {self.beta:g})"

    def check(self) -> None:
        super().check()
        if self.sampler == "vllm":
            raise UserError(
                "online_dpo.sampler=vllm: nothing checks that the engine has the weights in training. "
                "Use online_dpo.sampler=hf."
            )
        if self.replay:
            raise UserError(
                f"online_dpo.replay={self.replay:g}: pairs have no weights of tokens to share. Set online_dpo.replay=0; "
                "the loss sft, as in online_dpo.loss_type=[sigmoid,sft], keeps chosen answers likely."
            )
        if self.completions < 2 * self.pairs:
            raise UserError(
                f"online_dpo.pairs={self.pairs} needs {2 * self.pairs} completions of a prompt. Set "
                f"online_dpo.completions={2 * self.pairs}."
            )
