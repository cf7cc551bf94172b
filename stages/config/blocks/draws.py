"""The keys of objectives that learn from draws of the model in training."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.objective import Training
from stages.config.blocks.runtimes import RolloutRuntime
from stages.config.errors import UserError
from stages.config.limits import (
    at_least,
    computed,
    internal,
    partial_share,
    positive,
    words,
)

if TYPE_CHECKING:
    from stages.config.blocks.labels import Label


ONE_POOL = "Best of one pool"  # the title of best draws that are all drawn before the first step


@dataclass
class Drawing(Training):
    """The keys of objectives that learn from draws: completions of the model in training, which `label` scores."""

    # so that typing the value that was always used changes no node
    implied: ClassVar = {
        "sampler": "hf",
        "sync_every": 1,
        "truncated": "floor",
        "skip": True,
        "replay": 0,
    }
    sampler: str | None = words("hf", "vllm")
    completions: int = at_least(2)
    temperature: float = positive()
    max_new_tokens: int = at_least(1)
    sync_every: int | None = at_least(0)
    truncated: str | None = words("floor", "mask")
    skip: bool | None = MISSING
    replay: float | None = partial_share()
    # set by the pipeline: the block of the labeler that scores the draws
    label: Any = computed(None)
    control: bool | None = computed(None)  # set by the pipeline: true for a control
    # set by the pipeline for a control: the block whose keys it has
    controlled: str | None = internal()
    runtime: RolloutRuntime = field(default_factory=RolloutRuntime)

    def __post_init__(self) -> None:
        for key, value in self.implied.items():
            if vars(self)[key] == value:
                vars(self)[key] = None

    @property
    def rate_key(self) -> str:
        return "control_learning_rate" if self.control else super().rate_key

    @property
    def block_of_keys(self) -> str:
        """The block in which a user sets the keys of draws."""
        return self.controlled or self.block

    @property
    def subject(self) -> str:
        """The training that an error is about."""
        if self.controlled:
            return f"the control of align={self.controlled}"
        return f"align={self.block}"

    @property
    def unread(self) -> dict[str, Any]:
        """The keys that these settings leave unread, with the values that a node has instead."""
        return {}

    @property
    def turned_off(self) -> dict[str, str]:
        """The keys that another one of this block turns off, each with the reason and the way out."""
        return {}

    @property
    def scorer(self) -> "Label":
        """The block of the labeler that scores the draws."""
        scorer: Label = self.label
        return scorer

    @property
    def pool_steps(self) -> int:
        """The steps that learn from one pool of draws; 0: all steps."""
        return 1 if self.sync_every is None else self.sync_every

    @property
    def reads_reference(self) -> bool:
        """True if the loss reads log-probs of the SFT model."""
        return False

    @property
    def way_to_lower_demands(self) -> str:
        """Advice for prompts whose scores differ, but teach nothing."""
        return f"Raise {self.block}.completions (now {self.completions})."

    @property
    def way_to_stay_near(self) -> str:
        """Advice that keeps the policy nearer to the SFT model."""
        return f"lower {self.rate_key}"

    def check(self) -> None:
        if self.runtime.sharding is choices.Sharding.zero3:
            raise UserError(
                f"{self.objective.title} samples from whole weights, which launch=zero3 does not gather. Use fsdp."
            )
        qlora = self.adapter is choices.Adapter.qlora
        if self.sampler == "vllm" and (qlora or self.runtime.world_size > 1):
            raise UserError(
                f"{self.block}.sampler=vllm: the engine gets whole weights of one process, so neither launch=ddp nor "
                f"{self.block}.adapter=qlora work. Use {self.block}.sampler=hf."
            )
        if self.max_new_tokens >= self.max_length:
            raise UserError(
                f"{self.block}.max_length={self.max_length} has no room for a prompt before {self.block}.max_new_tokens."
            )
