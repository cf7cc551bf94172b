"""Who labels candidates, and how: programs, files, judges, people, reward models."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision, Reading, Rubrics
from stages.config.limits import between, computed, neutral, random_seed, setting_name, share, words

OWN = "own"  # the member of an ensemble that `label.own` is
BESIDE_OWN = "verifier"  # what `label` says by default, beside a labeler of the user's own


@dataclass
class Judge:
    """Models at endpoints that judge by a rubric: which of two candidates is better, or a score of each."""

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
    """Where the server for people listens."""

    host: str | None = None
    port: int | None = between(0, 65_535, None)


@dataclass
class Human:
    """People who judge in a browser: what they are asked, and how many of them."""

    instructions: str | None = None
    prompts: int | None = between(1, 1_000_000_000, None)
    answers: int | None = between(2, 6, None)
    comparisons: int | None = between(1, 1_000_000, None)
    overlap: float | None = share(None)
    annotators: int | None = between(2, 1000, None)
    reasons: list[str] | None = None
    seed: int | None = random_seed(None)
    answered: str | None = neutral(lambda: None)  # recorded, as what is said here
    runtime: HumanRuntime = field(default_factory=HumanRuntime)


@dataclass
class RewardModel:
    """A sequence-classification model with one output, which scores candidates: a folder or a hub repository, or where
    `path` is null the run's own, of `reward`."""

    path: str | None = None
    revision: str | None = None
    precision: Precision | None = None
    runtime: InferenceRuntime = field(default_factory=lambda: InferenceRuntime("auto", 16, 256))


@dataclass
class Voter:
    """One labeler of an ensemble, with the settings of its own block in `label`. A candidate that it scores below
    `veto` is never preferred, whatever the others say."""

    labeler: str = MISSING
    weight: float = between(0, 1_000_000, 1.0)
    veto: float | None = share(None)


@dataclass
class Ensemble:
    """Several labelers that vote on two candidates at a time, and people where these disagree."""

    members: list[Voter] | None = None
    people: int | None = between(1, 1_000_000_000, None)


@dataclass
class Labelers:
    """A block that names a labeler has the settings of every one, and of how its judgements are audited."""

    own: Own = field(default_factory=Own)
    judge: Judge = field(default_factory=Judge)
    human: Human = field(default_factory=Human)
    reward_model: RewardModel = field(default_factory=RewardModel)
    ensemble: Ensemble = field(default_factory=Ensemble)
    audit: int | None = between(1, 1_000_000, None)
    known: str | None = None


@dataclass
class Label(Labelers):
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
    limits: Any = setting_name()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    of: str | None = computed(None)  # set by the pipeline: the key of a source that is labels and no part of the chain

    @property
    def brings_pool(self) -> bool:
        """Whether the labels come with candidates of their own, so that nothing is sampled for them."""
        return self.labeler == "dataset" and not self.own

    @property
    def source(self) -> Source:
        """The preference set that brings them."""
        return Source(**{key.name: vars(self)[key.name] for key in fields(Source) if key.name in vars(self)})

    @property
    def voters(self) -> list[Voter]:
        """The members of an ensemble; none of any other labeler."""
        return self.ensemble.members or [] if self.labeler == "ensemble" else []

    @property
    def labelers(self) -> list[str]:
        """Who labels: the labeler, or an ensemble's members and the people that it asks; nobody of the house where the
        user's own labels alone."""
        if self.labeler != "ensemble":
            return [] if self.own else [self.labeler]
        return [voter.labeler for voter in self.voters] + (["human"] if self.ensemble.people else [])

    @property
    def prefers(self) -> bool:
        """True where the labels say which of two answers is better, and not by how much."""
        pairwise = self.labelers == ["judge"] and self.judge.kind is Rubrics.pairwise
        return pairwise or self.labeler == "ensemble" or self.labelers == ["human"]

    def member(self, labeler: str) -> "Label":
        """The block of an ensemble's member: that of a run in which it labels alone, and so are its judgements."""
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
        """The block of an ensemble without what its members' blocks say."""
        human = self.human if self.ensemble.people else Human()
        return replace(self, own=Own(), judge=Judge(), reward_model=RewardModel(), human=human)

    @property
    def by_reward(self) -> bool:
        """Whether the run's own reward model labels."""
        return "reward_model" in self.labelers and self.reward_model.path is None

    @property
    def name(self) -> str:
        """What the block is called on the command line."""
        return self.of or "label"

    @property
    def key(self) -> str:
        """What the path of a file is called on the command line."""
        return f"{self.name}.path"
