"""Blocks of what is trained: the keys of every objective, those of each, and the record that describes it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from stages.config.blocks.data import OptionalSource
from stages.config.blocks.models import Template
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.runtimes import InferenceRuntime, SampledRuntime, TrainRuntime
from stages.config.choices import (
    LOSS_TYPES,
    Adapter,
    Checkpointing,
    Demonstrations,
    DPOReference,
    Forward,
    Precision,
    Reads,
    Sharding,
    TrainedTurns,
    Weights,
)
from stages.config.limits import between, computed, neutral, positive, random_seed, share, words


@dataclass(frozen=True)
class Objective:
    """Record of an objective for the command line, the plan, the memory estimate and the pages. Its rows, model and
    trainer, whose imports take seconds, stand in `stages/objectives/NAME.py`."""

    name: str  # of its stage and of its block in the configuration
    title: str  # of what it trains, in a sentence
    card: str  # the first sentence of a model card
    reads: Reads
    sequences: int  # of a row: 2 in a pair
    labelled: float  # share of a row's tokens that the LM head scores; 0 for a reward model, which has none
    row_tokens: int  # tokens of a row of generated tasks, for the plan before there is data
    trl: str  # the class of TRL's arguments
    typed: dict[str, str]  # TRL's arguments that keys of the block set, with those keys
    of_loss: tuple[str, ...]  # keys that say what its loss is: under others it is another quantity, and none is lower
    next: str  # the stage that goes on from it
    adapters: tuple[Adapter, ...] = (Adapter.none, Adapter.lora, Adapter.qlora)
    in_chain: bool = False  # a part of every run, not trained for itself alone
    scores: bool = False  # trains a reward model, not one that answers

    @property
    def unit(self) -> str:
        """The noun for its rows."""
        return "rows" if self.reads is Reads.examples else str(self.reads)


@dataclass
class LoRA:
    """A low-rank adapter (arXiv:2106.09685); alpha / rank scales it. `target_modules` are names of linear layers, or
    all-linear (peft's name for all of them but the head)."""

    rank: int = between(1, 65_536)
    alpha: int = between(1, 65_536)
    target_modules: list[str] = MISSING


@dataclass
class Training:
    """Keys of every objective: what is trained, how fast, on what, and TRL's arguments beyond that."""

    objective: ClassVar[Objective]
    adapter: Adapter = MISSING
    lora: LoRA = field(default_factory=LoRA)
    learning_rate: float = positive()
    epochs: float = positive(10_000)
    batch_size: int = between(1, 1_000_000)
    max_length: int = between(1, 10_000_000)
    evaluations: int = between(0, 1000)
    max_dropped: float = share()
    precision: Precision = MISSING
    seed: int = random_seed()
    trainer: dict[str, Any] = field(default_factory=dict)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    @property
    def block(self) -> str:
        """The block of the configuration whose keys these are."""
        return self.objective.name

    @property
    def rate_key(self) -> str:
        """The key of the learning rate."""
        return f"{self.block}.learning_rate"

    def longest(self, context: int | None) -> tuple[int, str]:
        """Return the most tokens of a row, and the reason for leaving a longer one out: `max_length`, or the model's
        context where that is shorter."""
        if context and context < self.max_length:
            return context, f"longer than the {context:,} tokens that the model reads"
        return self.max_length, f"longer than {self.block}.max_length={self.max_length} tokens"

    @property
    def checkpointings(self) -> list[Checkpointing]:
        """The kinds of gradient checkpointing that may be used, from what recomputes least to what recomputes most.
        `selective` is left out with an adapter, which makes so many products that keeping their outputs saves nothing,
        and under ZeRO-3, which frees a layer's weights after its forward."""
        without = self.adapter is not Adapter.none or self.runtime.sharding is Sharding.zero3
        refused = {Checkpointing.auto, *([Checkpointing.selective] if without else [])}
        return [kind for kind in Checkpointing if kind not in refused]

    @property
    def by_micro_batch(self) -> bool:
        """True where a step depends on its micro-batches: dropout and noise are drawn per micro-batch, and the
        auxiliary loss of a mixture of experts is a mean of micro-batch means."""
        return not self.trainer.keys().isdisjoint(("router_aux_loss_coef", "disable_dropout", "neftune_noise_alpha"))

    @property
    def not_neutral(self) -> dict[str, Any]:
        """Return what `runtime` sets and yet changes the result, so that it enters the fingerprint."""
        if not self.by_micro_batch:
            return {}
        return {"micro_batch": self.runtime.micro_batch, "processes": self.runtime.world_size}

    @property
    def start_weights(self) -> Weights:
        """The type of the weights that training starts from. Trained ones are fp32; frozen ones may be less. An
        adapter that is continued was merged into fp32 weights, so it stands on them again."""
        if self.adapter is Adapter.qlora:
            return Weights.nf4
        bf16 = self.adapter is Adapter.lora and self.precision is Precision.bf16
        return Weights.bf16 if bf16 else Weights.fp32


@dataclass
class SFT(Training):
    objective = Objective(
        name="sft",
        title="SFT",
        card="A causal language model from {base}, by supervised fine-tuning.",
        reads=Reads.examples,
        sequences=1,
        labelled=0.5,
        row_tokens=60,
        trl="SFTConfig",
        typed={"packing": "packing"},
        of_loss=(
            *("trained_turns", "trainer.loss_type", "trainer.label_smoothing_factor"),
            "trainer.router_aux_loss_coef",
        ),
        next="sample",
        in_chain=True,
    )
    train: bool = MISSING
    demonstrations: Demonstrations | None = None  # null: selected where data.tasks.open_sft asks something
    trained_turns: TrainedTurns | None = None  # null: all
    control: bool | None = computed(None)  # set by the pipeline: on chosen completions, from SFT
    template: Template = field(default_factory=Template)
    packing: bool = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)

    @property
    def block(self) -> str:
        """A control trains as DPO does, by DPO's keys."""
        return "dpo" if self.control else "sft"

    @property
    def rate_key(self) -> str:
        return "control_learning_rate" if self.control else super().rate_key


@dataclass
class Reference:
    precision: Precision = MISSING
    weights: Weights = computed(Weights.fp32)  # these two set by the pipeline: as DPO holds and runs the policy
    forward: Forward = computed(Forward.shared_prefix)
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class DPO(Training):
    objective = Objective(
        name="dpo",
        title="DPO",
        card="A causal language model from {base}, by direct preference optimization (arXiv:2305.18290).",
        reads=Reads.pairs,
        sequences=2,
        labelled=0.6,
        row_tokens=80,
        trl="DPOConfig",
        typed={"beta": "beta", "loss_type": "loss_type", "loss_weights": "loss_weights"},
        of_loss=(
            *("beta", "loss_type", "loss_weights", "trainer.label_smoothing", "trainer.ld_alpha"),
            *("trainer.use_weighting", "trainer.f_divergence_type", "trainer.f_alpha_divergence_coef"),
            *("trainer.discopop_tau", "trainer.router_aux_loss_coef"),
        ),
        next="eval",
        adapters=tuple(Adapter),
        in_chain=True,
    )
    beta: float = positive(1000)
    loss_type: list[str] = words(*LOSS_TYPES)
    loss_weights: list[float] | None = between(0, 1_000_000)
    reference: DPOReference = MISSING
    forward: Forward = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)

    @property
    def by_micro_batch(self) -> bool:
        """True also for `aot` losses, which sort inside a micro-batch (arXiv:2406.05882)."""
        return super().by_micro_batch or not {"aot", "aot_unpaired"}.isdisjoint(self.loss_type)


@dataclass
class Reward(Training):
    """A reward model, from the SFT model. `source` is what it learns from, by `pairs` of its own; with a path of null,
    the chain's pairs."""

    objective = Objective(
        name="reward",
        title="a reward model",
        card="A reward model from {base}, by the loss of Bradley and Terry (arXiv:2203.02155).",
        reads=Reads.pairs,
        sequences=2,
        labelled=0.0,
        row_tokens=80,
        trl="RewardConfig",
        typed={},
        of_loss=("margin", "trainer.center_rewards_coefficient"),
        next="report",
        adapters=(Adapter.none, Adapter.lora),
        scores=True,
    )
    source: OptionalSource = neutral(OptionalSource)  # its rows come as pairs
    pairs: Pairs = neutral(Pairs)
    margin: bool = MISSING
    forward: Forward = MISSING


OBJECTIVES = {block.objective.name: block.objective for block in (SFT, DPO, Reward)}
