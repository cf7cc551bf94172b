"""Blocks of training: the keys of each objective, with the record that describes it."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.arguments import (
    RewardArguments,
    SFTArguments,
)
from stages.config.blocks.data import OptionalSource
from stages.config.blocks.grpo import GRPO
from stages.config.blocks.models import Template
from stages.config.blocks.objective import Objective, OwnTraining, Training
from stages.config.blocks.online_dpo import OnlineDPO
from stages.config.blocks.pair_loss import PairLoss
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.runtimes import (
    SampledRuntime,
    ScoringRuntime,
)
from stages.config.errors import UserError
from stages.config.limits import (
    computed,
    neutral,
    positive,
    random_seed,
    words,
)


@dataclass
class FirstModel:
    """What every option of `sft` has: the chat template that all later stages use."""

    objective: ClassVar[Objective] = Objective.read("sft")
    train: bool = computed(MISSING)  # by the group's option
    seed: int = random_seed()
    template: Template = field(default_factory=Template)


@dataclass
class Untrained(FirstModel):
    """The model as it is given. The seed draws rows of embeddings that a template adds."""

    train: bool = computed(False)


@dataclass
class SFT(Training, FirstModel):
    """Supervised fine-tuning on demonstrations."""

    objective = Objective.read("sft")
    train: bool = computed(True)
    demonstrations: choices.Demonstrations | None = None
    turns: choices.Turns | None = None
    control: bool | None = computed(None)  # set by the pipeline: true for the control
    packing: bool = MISSING
    trainer: SFTArguments = field(default_factory=SFTArguments)
    runtime: SampledRuntime = field(default_factory=SampledRuntime)

    def check(self) -> None:
        if self.trainer.loss_type == "dft" and self.trainer.label_smoothing_factor:
            raise UserError(
                "sft.trainer.label_smoothing_factor: the loss dft does not read this. Leave it out."
            )

    @property
    def block(self) -> str:
        """The block that holds these keys: `dpo` for the control, else `sft`."""
        return "dpo" if self.control else "sft"

    @property
    def rate_key(self) -> str:
        return "control_learning_rate" if self.control else super().rate_key


@dataclass
class Reference:
    """The log-probabilities of pairs, or of completions with a label each, under the reference model."""

    precision: choices.Precision = MISSING
    # set by the pipeline: of the policy in DPO
    weights: choices.Weights = computed(choices.Weights.fp32)
    # set by the pipeline: as dpo.forward
    forward: choices.Forward = computed(choices.Forward.shared_prefix)
    runtime: ScoringRuntime = field(default_factory=ScoringRuntime)


@dataclass
class DPO(PairLoss, OwnTraining):
    """Direct preference optimization on pairs (arXiv:2305.18290)."""

    objective = Objective.read("dpo")
    own_loader = "stages.training.own_loss:load_own_loss"
    loss_type: list[str] = words(*choices.LOSS_TYPES, choices.SIMPO)
    simpo_gamma: float | None = None
    reference: choices.DPOReference = MISSING
    forward: choices.Forward = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)

    def __post_init__(self) -> None:
        if self.own:  # it replaces the losses of the recipe
            self.loss_type = []
            self.loss_weights = None
            self.simpo_gamma = None

    def check(self) -> None:
        if self.simpo_gamma is not None and choices.SIMPO not in self.loss_type:
            raise UserError(
                f"dpo.simpo_gamma={self.simpo_gamma:g}: no loss is simpo. Add dpo.loss_type=[simpo], or leave the key out."
            )
        if self.reference_free and self.reference is not choices.DPOReference.previous:
            raise UserError(
                f"dpo.reference={self.reference}: dpo.loss_type=[simpo] needs no reference. Leave it out."
            )

    @property
    def turned_off_by_own(self) -> dict[str, str]:
        if not self.own:
            return {}
        reason = "dpo.own is the loss. Leave dpo.own out"
        return dict.fromkeys(("loss_type", "loss_weights", "simpo_gamma"), reason)

    @property
    def reference_free(self) -> bool:
        """True if the only loss is SimPO's, which needs no reference."""
        return self.loss_type == [choices.SIMPO]

    @property
    def checks_reference(self) -> bool:
        return not self.reference_free

    @property
    def has_trl_loss(self) -> bool:
        return not self.own and not self.reference_free

    @property
    def loss_names(self) -> str:
        return str(self.own.name) if self.own else super().loss_names

    @property
    def title(self) -> str:
        return "SimPO" if self.reference_free else super().title

    @property
    def card(self) -> str:
        if self.own:
            return (
                "A causal language model from {base}, by a user-defined loss of preference pairs."
            )
        simpo = "A causal language model from {base}, by SimPO (arXiv:2405.14734)."
        return simpo if self.reference_free else super().card

    @property
    def simpo_margin(self) -> float:
        """SimPO's margin: `simpo_gamma`, by default half of `beta`."""
        return self.beta / 2 if self.simpo_gamma is None else self.simpo_gamma


@dataclass
class KTO(Training):
    """Kahneman-Tversky optimization on single completions (arXiv:2402.01306)."""

    objective = Objective.read("kto")
    beta: float = positive()
    desirable_weight: float | None = MISSING
    undesirable_weight: float | None = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)

    @property
    def checks_reference(self) -> bool:
        return True

    def check(self) -> None:
        if (self.desirable_weight, self.undesirable_weight) == (0, 0):
            raise UserError("kto.desirable_weight=0: both weights are 0. Leave them out.")


@dataclass
class Reward(Training):
    """A reward model, trained from the SFT model on the run's pairs, or on preferences of its own in `source`. `pairs`
    says how pairs are made of these preferences."""

    objective = Objective.read("reward")
    source: OptionalSource = neutral(OptionalSource)  # preferences to learn from
    pairs: Pairs = neutral(Pairs)
    margin: bool = MISSING
    forward: choices.Forward = MISSING
    trainer: RewardArguments = field(default_factory=RewardArguments)


SFTS: dict[str, type[FirstModel]] = {"default": SFT, "none": Untrained}
BLOCKS: dict[str, type[Training]] = {
    "sft": SFT,
    "dpo": DPO,
    "kto": KTO,
    "grpo": GRPO,
    "online_dpo": OnlineDPO,
    "reward": Reward,
}
OBJECTIVES = {name: block.objective for name, block in BLOCKS.items()}
