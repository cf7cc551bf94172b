"""What every training objective has: the record that describes it, and its keys."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from stages.config import choices
from stages.config.blocks.arguments import TrainerArguments
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import TrainRuntime
from stages.config.installation import read_beside
from stages.config.limits import (
    at_least,
    between,
    number_of_epochs,
    positive,
    random_seed,
    share,
)
from stages.config.stage_table import DRAWING, STAGES

if TYPE_CHECKING:
    from transformers import TrainingArguments


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
    def checks_reference(self) -> bool:
        """True if the first step checks stored log-probs of a reference."""
        return False

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
class OwnTraining(Training):
    """A training that may call a user-defined function in every step."""

    own_loader: ClassVar[str]  # what loads and checks the function, as MODULE:FUNCTION
    own: Own = field(default_factory=Own)

    @property
    def turned_off_by_own(self) -> dict[str, str]:
        """The keys that `own` turns off, and `own` if another key does, each with the reason and the way out."""
        return {}
