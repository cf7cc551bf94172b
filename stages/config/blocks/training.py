"""What is trained: what every objective's block has, and the objectives'."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.data import OptionalSource
from stages.config.blocks.models import Template
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.runtimes import InferenceRuntime, SampledRuntime, TrainRuntime
from stages.config.choices import (
    LOSS_TYPES,
    Adapter,
    Demonstrations,
    DPOReference,
    Forward,
    Precision,
    TrainedTurns,
    Weights,
)
from stages.config.limits import between, computed, neutral, positive, random_seed, share, words


@dataclass
class LoRA:
    """A low-rank adapter (arXiv:2106.09685); alpha / rank scales it. `target_modules` are names of linear layers, or
    all-linear (peft's name for all of them but the head)."""

    rank: int = between(1, 65_536)
    alpha: int = between(1, 65_536)
    target_modules: list[str] = MISSING


@dataclass
class Training:
    """What every objective's block has: what is trained, how fast, on what, and TRL's arguments beyond that."""

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
        return type(self).__name__.lower()

    def longest(self, context: int | None) -> tuple[int, str]:
        """Return the most tokens of a row, and the reason for leaving a longer one out: `max_length`, or the model's
        context where that is shorter."""
        if context and context < self.max_length:
            return context, f"longer than the {context:,} tokens that the model reads"
        return self.max_length, f"longer than {self.block}.max_length={self.max_length} tokens"

    @property
    def held(self) -> Weights:
        """How the weights are held that training starts from. Trained ones are fp32; frozen ones may be less. An
        adapter that is continued was merged into fp32 weights, so it stands on them again."""
        if self.adapter is Adapter.qlora:
            return Weights.nf4
        bf16 = self.adapter is Adapter.lora and self.precision is Precision.bf16
        return Weights.bf16 if bf16 else Weights.fp32


@dataclass
class SFT(Training):
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


@dataclass
class Reference:
    precision: Precision = MISSING
    weights: Weights = computed(Weights.fp32)  # these two set by the pipeline: as DPO holds and runs the policy
    forward: Forward = computed(Forward.shared_prefix)
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class DPO(Training):
    beta: float = positive(1000)
    loss_type: list[str] = words(*LOSS_TYPES)
    loss_weights: list[float] | None = between(0, 1_000_000)
    reference: DPOReference = MISSING
    forward: Forward = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)


@dataclass
class Reward(Training):
    """A reward model, from the SFT model. `source` is what it learns from, by `pairs` of its own; with a path of null,
    the chain's pairs."""

    source: OptionalSource = neutral(OptionalSource)  # its rows come as pairs
    pairs: Pairs = neutral(Pairs)
    margin: bool = MISSING
    forward: Forward = MISSING
