"""The block `label`: the labeler of candidates (a program, a file, a judge, people or a reward model) and its keys."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import ScoringRuntime
from stages.config.choices import Precision, Reading, Rubrics
from stages.config.limits import between, computed, internal, neutral, random_seed, share, words

OWN = "own"  # the name of `label.own` among the members of an ensemble
SOURCE_ORDER = "source_order"  # the labeler that only knows the places of sources in `sample.pool`
BESIDE_OWN = "verifier"  # the default of `label.labeler`, which `label.own` replaces


@dataclass
class Judge:
    """Models at endpoints that follow a rubric. They choose the better of two candidates, or score each candidate."""

    endpoints: list[Endpoint] | None = None
    kind: Rubrics | None = None
    rubric: str | None = None
    reading: Reading | None = None
    comparisons: int | None = between(1, 1_000_000, None)
    temperature: float | None = between(0, 100, None)
    max_tokens: int | None = between(1, 65_536, None)
    attempts: int | None = between(1, 100, None)
    seed: int | None = random_seed(None)


@dataclass
class HumanRuntime:
    """The address of the web page on which people judge."""

    host: str | None = None
    port: int | None = between(0, 65_535, None)  # 0: any free port


@dataclass
class Human:
    """People who judge answers in a browser, and the questions that they get."""

    instructions: str | None = None
    prompts: int | None = between(1, 1_000_000_000, None)
    answers: int | None = between(2, 6, None)
    comparisons: int | None = between(1, 1_000_000, None)
    overlap: float | None = share(None)
    annotators: int | None = between(2, 1000, None)
    reasons: list[str] | None = None
    seed: int | None = random_seed(None)
    # the manifest keeps it, but it changes no fingerprint
    answered: str | None = neutral(lambda: None)
    runtime: HumanRuntime = field(default_factory=HumanRuntime)


@dataclass
class RewardModel:
    """A sequence-classification model with one output, which scores candidates."""

    path: str | None = None
    revision: str | None = None
    precision: Precision | None = None
    runtime: ScoringRuntime = field(default_factory=lambda: ScoringRuntime(1, 1, "auto", None, 256))


@dataclass
class Voter:
    """One labeler of an ensemble. Its other settings are in the block `label`, as when it labels alone."""

    labeler: str = MISSING  # verifier, judge, reward_model or own
    weight: float = between(0, 1_000_000, 1.0)  # of its vote
    # a candidate with a lower score from this labeler is never preferred
    veto: float | None = share(None)


@dataclass
class Ensemble:
    """Several labelers that vote on each comparison of two candidates."""

    members: list[Voter] | None = None
    people: int | None = between(1, 1_000_000_000, None)


@dataclass
class Labelers:
    """The settings of every labeler, and of the audit of judgements, for blocks that name a labeler."""

    own: Own = field(default_factory=Own)
    judge: Judge = field(default_factory=Judge)
    human: Human = field(default_factory=Human)
    reward_model: RewardModel = field(default_factory=RewardModel)
    ensemble: Ensemble = field(default_factory=Ensemble)
    audit: int | None = between(1, 1_000_000, None)
    known: str | None = None


@dataclass
class Label(Labelers):
    """The labeler of candidates. With `label=dataset`, a file or hub dataset holds candidates with their labels."""

    labeler: str = MISSING
    path: str | None = MISSING
    revision: str | None = MISSING
    subset: str | None = None
    hub_split: str = MISSING
    format: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: dict[Any, str] = field(default_factory=dict)
    reasoning: str | None = words("keep", "strip", default=None)
    licence: str | None = None
    max_failed: float = share()
    limits: Any = internal()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    # set by the pipeline: the block that takes the place of label, as eval.judged
    of: str | None = computed(None)

    @property
    def brings_pool(self) -> bool:
        """True if the labels come in a file with their candidates, so that nothing is sampled."""
        return self.labeler == "dataset" and not self.own

    @property
    def source(self) -> Source:
        """The source of a preference set."""
        return Source(
            **{key.name: vars(self)[key.name] for key in fields(Source) if key.name in vars(self)}
        )

    @property
    def voters(self) -> list[Voter]:
        """The members of an ensemble; empty for any other labeler."""
        return self.ensemble.members or [] if self.labeler == "ensemble" else []

    @property
    def labelers(self) -> list[str]:
        """The names of all labelers, people among them. Empty if the user's own (`label.own`) is the only one."""
        if self.labeler != "ensemble":
            return [] if self.own else [self.labeler]
        return [voter.labeler for voter in self.voters] + (
            ["human"] if self.ensemble.people else []
        )

    @property
    def prefers(self) -> bool:
        """True if the labels only say which of two answers is better, without scores."""
        pairwise = self.labelers == ["judge"] and self.judge.kind is Rubrics.pairwise
        return pairwise or self.labeler == "ensemble" or self.labelers == ["human"]

    def member(self, labeler: str) -> "Label":
        """Return the block of an ensemble's member: the same as in a run in which this member labels alone."""
        is_own = labeler == OWN
        return replace(
            self,
            labeler=BESIDE_OWN if is_own else labeler,
            own=self.own if is_own else Own(),
            judge=self.judge if labeler == "judge" else Judge(),
            reward_model=self.reward_model if labeler == "reward_model" else RewardModel(),
            human=Human(),
            ensemble=Ensemble(),
            audit=None,
            known=None,
        )

    @property
    def joined(self) -> "Label":
        """The block of an ensemble without the settings that belong to its members."""
        human = self.human if self.ensemble.people else Human()
        return replace(self, own=Own(), judge=Judge(), reward_model=RewardModel(), human=human)

    @property
    def by_reward(self) -> bool:
        """True if the reward model that this run trains is one of the labelers."""
        return "reward_model" in self.labelers and self.reward_model.path is None

    @property
    def name(self) -> str:
        """The name of this block on the command line."""
        return self.of or "label"

    @property
    def key(self) -> str:
        """The setting that holds the path."""
        return f"{self.name}.path"
