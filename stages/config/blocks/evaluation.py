"""Blocks of the evaluation: the answers of the models, and their comparison."""

from dataclasses import dataclass, field, fields

from omegaconf import MISSING

from stages.config.blocks.data import Source, Suites
from stages.config.blocks.labels import BESIDE_OWN, Label, Labelers
from stages.config.blocks.runtimes import DeviceRuntime, InferenceRuntime, SamplingRuntime
from stages.config.choices import Precision, Role, Split
from stages.config.limits import Limit, between, computed, limited, share

NOBODY = "none"  # the `eval.judged.labeler` that turns judged comparisons off
REFERENCE = "reference"  # in `eval.judged.against`: the reference answers of the prompts
REFERENCES = "the reference answers"  # their title in the report
# the comparison of one constant answer to all prompts, which no labeler should prefer
CONSTANT = "constant"
# in which the suite `templates` is asked beside the model's own form
FORMS = ("zephyr", "llama3", "text")
ROUND = "round_"  # prefix of the names of the answers after each round of DPO; round 0 is SFT


@dataclass
class Answer:
    """The prompts that every evaluated model answers, and the generation of these answers."""

    split: Split = MISSING
    open: int = between(0, 1_000_000)
    max_new_tokens: int = between(1, 65_536)
    max_dropped: float | None = share(None)
    precision: Precision = MISSING
    sampler: str | None = MISSING
    form: str | None = computed(None)  # set by the pipeline: one of FORMS
    runtime: SamplingRuntime = field(default_factory=SamplingRuntime)

    def __post_init__(self) -> None:
        # so that typing the default changes no node
        self.sampler = None if self.sampler == "hf" else self.sampler


@dataclass
class BenchmarkRuntime(InferenceRuntime):
    """The device, the batches, and the Python that runs the harness. In fp32, they change no result."""

    python: str | None = MISSING


@dataclass
class Benchmark:
    """Tasks of lm-evaluation-harness, which every evaluated model answers in its training's template."""

    tasks: list[str] = field(default_factory=list)
    tasks_dir: str | None = MISSING
    limit: int | None = between(1, 1_000_000)
    max_new_tokens: int | None = between(1, 65_536)
    max_dropped: float | None = share(None)
    precision: Precision = MISSING
    runtime: BenchmarkRuntime = field(default_factory=BenchmarkRuntime)
    engine: str | None = computed(None)  # set by the pipeline: the harness's version


@dataclass
class Judged(Labelers):
    """A labeler that compares the policy's answers with those of other models. Its blocks are those of `label`."""

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
        """The folders and hub ids of models outside this run that the policy is compared with."""
        return [name for name in self.against if name not in (REFERENCE, *Role)]

    @property
    def label(self) -> Label:
        """The block of `stage=label` for a comparison."""
        keys = {
            key.name: getattr(self, key.name) for key in fields(Label) if key.name in vars(self)
        }
        keys["labeler"] = BESIDE_OWN if self.labeler in (None, NOBODY) else self.labeler
        keys["max_failed"] = self.max_failed or 0.0
        return Label(**keys, path=None, revision=None, hub_split="train", of="eval.judged")


@dataclass
class Versus:
    """Two models' answers to the same prompts. `against` names the opponent of the policy. With `constant`, one answer
    that fits no prompt takes the policy's place."""

    against: str
    prompts: int
    constant: bool = False


@dataclass
class Eval:
    """The comparison of all models: pass rates, likelihoods, judged comparisons, and intervals for each figure."""

    judged: Judged = field(default_factory=Judged)
    retention: list[Source] = field(default_factory=list)
    suites: Suites = field(default_factory=Suites)
    confidence: float = limited(
        Limit(0, "must be above 0 and below 1, as 0.95", high=1, open=True, below=True)
    )
    likelihood_prompts: int = between(1, 1_000_000)
    precision: Precision = MISSING
    # set by the pipeline: {ROLE: TITLE} of the evaluated models
    models: dict[str, str] = computed({})
    max_new_tokens: int | None = computed(None)  # set by the pipeline: of an answer, at most
    # set by the pipeline: {NAME: TITLE} of the policy's opponents
    compared: dict[str, str] = computed({})
    # set by the pipeline: digests of the judge and of the benchmarks
    instruments: dict[str, str] = computed({})
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)
