"""Blocks of training: the keys of all objectives, and the keys of each one with the record that describes it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.arguments import (
    DPOArguments,
    RewardArguments,
    SFTArguments,
    TrainerArguments,
)
from stages.config.blocks.data import OptionalSource
from stages.config.blocks.models import Own, Template
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.runtimes import (
    RolloutRuntime,
    SampledRuntime,
    ScoringRuntime,
    TrainRuntime,
)
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.limits import (
    at_least,
    between,
    computed,
    neutral,
    number_of_epochs,
    partial_share,
    positive,
    random_seed,
    share,
    words,
)
from stages.config.stage_table import DRAWING, STAGES

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from stages.config.blocks.labels import Label


@dataclass(frozen=True)
class Objective:
    """A training objective, as the command line, the plan, the memory estimate and the pages describe it. Its data
    set, model and trainer are in `stages/objectives/NAME.py`, since their imports take seconds."""

    name: str  # the name of its stage and of its block in the configuration
    title: str  # the name of the trained model in a sentence
    card: str  # the first sentence of the model card
    reads: choices.Reads
    sequences: int  # sequences in a row of data: 2 in a pair
    # the share of a row's tokens that the LM head scores; 0 for a reward model, which has no LM head
    labelled: float
    # mean tokens of a row of generated tasks: the plan's estimate before there is data
    row_tokens: int
    # the class of TRL's arguments; "": the objective has a trainer of its own, with the arguments of all
    trl: str
    typed: dict[str, str]  # arguments of TRL that a key of the block sets, with that key
    # keys that define the loss: losses are only comparable if these keys are equal
    of_loss: tuple[str, ...]
    adapters: tuple[choices.Adapter, ...] = (
        choices.Adapter.none,
        choices.Adapter.lora,
        choices.Adapter.qlora,
    )
    in_chain: bool = False  # true: every run trains it; false: only its own target does
    scores: bool = False  # true: it trains a reward model, which scores answers and writes none

    @classmethod
    def read(cls, name: str) -> "Objective":
        """Return the objective of this name in the YAML file beside this module."""
        keys = dict(read_beside(__file__)[name])
        keys.setdefault("title", STAGES[name].title)
        keys |= {"reads": choices.Reads(keys["reads"]), "of_loss": tuple(keys["of_loss"].split())}
        if "adapters" in keys:
            keys["adapters"] = tuple(map(choices.Adapter, keys["adapters"].split()))
        return cls(name, **keys)

    @property
    def arguments_class(self) -> type["TrainingArguments"]:
        """The class of arguments that `trl` names in TRL, else that of transformers."""
        import transformers  # takes seconds
        import trl

        return getattr(trl, self.trl) if self.trl else transformers.TrainingArguments

    @property
    def draws(self) -> bool:
        """True if it learns from draws of the model in training."""
        return self.name in DRAWING

    @property
    def row_noun(self) -> str:
        """The noun for its rows: rows, completions, pairs or prompts."""
        return {choices.Reads.examples: "rows", choices.Reads.unpaired: "completions"}.get(
            self.reads, str(self.reads)
        )


@dataclass
class LoRA:
    """A low-rank adapter (arXiv:2106.09685)."""

    rank: int = at_least(1)
    alpha: int = at_least(1)  # the adapter's output is scaled by alpha / rank
    target_modules: list[str] = MISSING  # names of linear layers; [all-linear]: all except the head


@dataclass
class Training:
    """The keys of every objective."""

    objective: ClassVar[Objective]
    adapter: choices.Adapter = MISSING
    lora: LoRA = field(default_factory=LoRA)
    learning_rate: int | float | str = positive()
    epochs: float = number_of_epochs()
    batch_size: int = at_least(1)
    max_length: int = at_least(1)
    evaluations: int = between(0, 1_000)
    max_dropped: float = share()
    precision: choices.Precision = MISSING
    seed: int = random_seed()
    trainer: TrainerArguments = field(default_factory=TrainerArguments)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    def check(self) -> None:
        """Raise UserError for keys that do not fit together."""

    @property
    def block(self) -> str:
        """The block of the configuration that holds these keys."""
        return self.objective.name

    @property
    def own_key(self) -> str:
        """The setting of the user's code, in the blocks that have such code."""
        return f"{self.block}.own"

    @property
    def card(self) -> str:
        """The first sentence of the model card."""
        return self.objective.card

    @property
    def title(self) -> str:
        """The name of the trained model in a sentence."""
        return self.objective.title

    @property
    def rate_key(self) -> str:
        """The key of the learning rate."""
        return f"{self.block}.learning_rate"

    def length_limit(self, context: int | None) -> tuple[int, str, str]:
        """Return the most tokens of a row (`max_length`, or the model's context if that is shorter), the reason to drop
        longer ones, and the setting of the limit, or '' if it is the context."""
        if context and context < self.max_length:
            no_setting = ""
            reason_to_drop = f"longer than the {context:,} tokens that the model reads"
            return context, reason_to_drop, no_setting
        setting = f"{self.block}.max_length"
        reason_to_drop = f"longer than {setting}={self.max_length} tokens"
        return self.max_length, reason_to_drop, setting

    @property
    def usable_checkpointings(self) -> list[choices.Checkpointing]:
        """The kinds of gradient checkpointing that this training can use. With an adapter, `selective` saves nothing;
        under ZeRO-3, a layer's weights are gone after its forward."""
        # `selective` would keep all of an adapter's many small products
        keeps_small_products = self.adapter is not choices.Adapter.none
        frees_layers = self.runtime.sharding is choices.Sharding.zero3  # after their forward
        usable = list(choices.Checkpointing)
        usable.remove(choices.Checkpointing.auto)
        if keeps_small_products or frees_layers:
            usable.remove(choices.Checkpointing.selective)
        return usable

    @property
    def depends_on_micro_batch(self) -> bool:
        """True if the size of micro-batches changes an optimizer step: if dropout, noise or the auxiliary loss of a
        mixture of experts is set."""
        return not self.trainer.given.keys().isdisjoint(
            ("router_aux_loss_coef", "disable_dropout", "neftune_noise_alpha")
        )

    @property
    def fingerprinted_runtime(self) -> dict[str, Any]:
        """The settings of `runtime` that enter the fingerprint: none, unless the result depends on micro-batches."""
        if not self.depends_on_micro_batch:
            return {}
        return {"micro_batch": self.runtime.micro_batch, "processes": self.runtime.world_size}

    @property
    def start_weights(self) -> choices.Weights:
        """The type in which training holds the start weights: nf4 for QLoRA, bf16 for LoRA in bf16, else fp32."""
        if self.adapter is choices.Adapter.qlora:
            return choices.Weights.nf4
        # all others are trained, or SFT merged an adapter into them in fp32
        are_frozen = self.adapter is choices.Adapter.lora
        in_bf16 = are_frozen and self.precision is choices.Precision.bf16
        return choices.Weights.bf16 if in_bf16 else choices.Weights.fp32


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
class DPO(Training):
    """Direct preference optimization on pairs (arXiv:2305.18290)."""

    objective = Objective.read("dpo")
    beta: float = positive()
    loss_type: list[str] = words(*choices.LOSS_TYPES, choices.SIMPO)
    loss_weights: list[float] | None = MISSING
    own: Own = field(default_factory=Own)
    simpo_gamma: float | None = None
    first_difference: bool = MISSING
    reference: choices.DPOReference = MISSING
    forward: choices.Forward = MISSING
    trainer: DPOArguments = field(default_factory=DPOArguments)
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
    def depends_on_micro_batch(self) -> bool:
        """True also for `aot` losses."""
        # they sort the pairs of a micro-batch (arXiv:2406.05882)
        has_aot_loss = not {"aot", "aot_unpaired"}.isdisjoint(self.loss_type)
        return super().depends_on_micro_batch or has_aot_loss

    @property
    def reference_free(self) -> bool:
        """True if the only loss is SimPO's, which needs no reference."""
        return self.loss_type == [choices.SIMPO]

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

    def check(self) -> None:
        if (self.desirable_weight, self.undesirable_weight) == (0, 0):
            raise UserError("kto.desirable_weight=0: both weights are 0. Leave them out.")


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
    runtime: RolloutRuntime = field(default_factory=RolloutRuntime)

    def __post_init__(self) -> None:
        for key, value in self.implied.items():
            if vars(self)[key] == value:
                vars(self)[key] = None

    @property
    def rate_key(self) -> str:
        return "control_learning_rate" if self.control else super().rate_key

    @property
    def unread(self) -> dict[str, Any]:
        """The keys that these settings leave unread, with the values that a node has instead."""
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


ONE_POOL = "Best of one pool"  # the title of best draws that are all drawn before the first step


@dataclass
class GRPO(Drawing):
    """Group-relative policy optimization: the model learns from how its answers' scores differ."""

    objective = Objective.read("grpo")
    loss_type: str = words(*choices.GROUP_LOSSES)
    baseline: str = words(*choices.BASELINES)
    own: Own = field(default_factory=Own)
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
    "reward": Reward,
}
OBJECTIVES = {name: block.objective for name, block in BLOCKS.items()}
