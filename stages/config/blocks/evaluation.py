"""How models are asked and compared."""

from dataclasses import dataclass, field, fields

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.labels import BESIDE_OWN, Label, Labelers
from stages.config.blocks.runtimes import DeviceRuntime, InferenceRuntime
from stages.config.choices import Precision, Role, Split
from stages.config.limits import Limit, between, computed, limited, share

NOBODY = "none"  # the judged evaluation that is none
REFERENCE = "reference"  # of `eval.judged.against`: the prompts' own reference answers,
REFERENCES = "the reference answers"  # and what they are called
CONSTANT = "constant"  # a comparison in which one answer for every prompt takes the policy's place


@dataclass
class Answer:
    split: Split = MISSING
    open: int = between(0, 1_000_000)
    max_new_tokens: int = between(1, 65_536)
    max_dropped: float | None = share(None)
    precision: Precision = MISSING
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class Judged(Labelers):
    """Whose answers are better: a labeler says so of the policy's beside those of others, prompt by prompt."""

    labeler: str | None = None
    source: list[Source] = field(default_factory=list)
    prompts: int | None = between(1, 1_000_000, None)
    against: list[str] = field(default_factory=list)
    max_longer: float = share(0.9)
    max_failed: float | None = share(None)

    @property
    def is_requested(self) -> bool:
        return bool(self.own) or self.labeler not in (None, NOBODY)

    @property
    def folders(self) -> list[str]:
        """The models that the policy is held against and that are none of this run's."""
        return [name for name in self.against if name not in (REFERENCE, *Role)]

    @property
    def label(self) -> Label:
        """The block of the labels of a comparison."""
        keys = {key.name: getattr(self, key.name) for key in fields(Label) if key.name in vars(self)}
        keys["labeler"] = BESIDE_OWN if self.labeler in (None, NOBODY) else self.labeler
        keys["max_failed"] = self.max_failed or 0.0
        return Label(**keys, path=None, revision=None, hub_split="train", of="eval.judged")


@dataclass
class Versus:
    """Two models' answers to the same prompts. `against`: whose the other ones are; `constant`: the policy's place is
    taken by one answer that looks at no prompt."""

    against: str
    prompts: int
    constant: bool = False


@dataclass
class Eval:
    judged: Judged = field(default_factory=Judged)
    retention: list[Source] = field(default_factory=list)
    confidence: float = limited(Limit(0, "must be above 0 and below 1: 0.95 is usual", high=1, open=True, below=True))
    likelihood_prompts: int = between(1, 1_000_000)
    precision: Precision = MISSING
    models: dict[str, str] = computed({})  # set by the pipeline: what is evaluated, role: title
    compared: dict[str, str] = computed({})  # and whose answers are judged beside the policy's, name: title
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)
