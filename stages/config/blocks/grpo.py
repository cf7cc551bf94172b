"""The keys of GRPO."""

from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.arguments import TrainerArguments
from stages.config.blocks.draws import ONE_POOL, Drawing
from stages.config.blocks.models import Own
from stages.config.blocks.objective import Objective, OwnTraining
from stages.config.limits import at_least, words


@dataclass
class GRPO(Drawing, OwnTraining):
    """Group-relative policy optimization: the model learns from how its answers' scores differ."""

    objective = Objective.read("grpo")
    own_loader = "stages.training.own_advantages:load_own_advantages"
    loss_type: str = words(*choices.GROUP_LOSSES)
    baseline: str = words(*choices.BASELINES)
    best: int | None = at_least(1)
    min_score: float | None = MISSING
    choose: str | None = words("best", "random")
    beta: float = MISSING

    @property
    def takes_best(self) -> bool:
        """True if the best draws are trained on as demonstrations are, and the others are not."""
        return self.baseline == "best"

    @property
    def unread(self) -> dict[str, Any]:
        if self.takes_best:
            # every token counts alike, and no advantage is computed
            return {"loss_type": "dapo", "own": Own()}
        return {"best": None, "min_score": None, "choose": None}

    @property
    def turned_off(self) -> dict[str, str]:
        if self.takes_best:
            return {"loss_type": "grpo.baseline=best has a loss of its own. Set another baseline"}
        reason = f"grpo.baseline={self.baseline} does not read it. Add grpo.baseline=best"
        return dict.fromkeys(("best", "min_score", "choose", "skip"), reason)

    @property
    def turned_off_by_own(self) -> dict[str, str]:
        reasons = dict[str, str]()
        if self.own:
            reasons["baseline"] = "grpo.own computes the advantages. Leave grpo.own out"
        if self.takes_best:
            reasons["own"] = "grpo.baseline=best computes no advantages. Set another baseline"
        return reasons

    @property
    def title(self) -> str:
        if not self.takes_best:
            return super().title
        if self.choose == "random":
            return "Random draws"
        return "Best draws" if self.pool_steps else ONE_POOL

    @property
    def card(self) -> str:
        if not self.takes_best:
            return super().card
        return "A causal language model from {base}, by training on its best draws (RAFT, arXiv:2304.06767)."

    @property
    def reads_reference(self) -> bool:
        return bool(self.beta)

    @property
    def way_to_lower_demands(self) -> str:
        if self.takes_best:
            return f"Lower grpo.min_score (now {self.min_score or 0:g})."
        return super().way_to_lower_demands

    @property
    def way_to_stay_near(self) -> str:
        return "set grpo.beta=0.04"


def control_of(block: Drawing, grpo: GRPO, rate: float) -> GRPO:
    """Return the block of the control of an objective that draws: its best draws, with its own keys and another learning
    rate. The control of best draws themselves is the best of one pool, which the model before the first step draws;
    that of random draws is best draws. `grpo` has the keys of best draws."""
    settings = {key.name: getattr(block, key.name) for key in fields(Drawing)}
    arguments = {key.name: getattr(block.trainer, key.name) for key in fields(TrainerArguments)}
    settings |= {
        "trainer": TrainerArguments(**arguments),
        "baseline": "best",
        "learning_rate": rate,
        "control": True,
        "controlled": block.block,
    }
    if isinstance(block, GRPO) and block.takes_best:
        settings |= {"choose": "best"} if block.choose == "random" else {"sync_every": 0}
    return replace(grpo, **settings)
