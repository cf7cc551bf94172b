"""Blocks of the evaluation: the answers of the models, and their comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.labels import (
    Ensemble,
    Judge,
    Label,
    OwnLabeler,
    RewardModel,
    label_classes,
)
from stages.config.blocks.runtimes import DeviceRuntime, SamplingRuntime
from stages.config.choices import Precision, Role, Split
from stages.config.errors import UserError
from stages.config.extras import options_of_extras
from stages.config.limits import (
    Limit,
    at_least,
    between,
    computed,
    internal,
    limited,
    of_extra,
    positive,
    share,
)

NOBODY = "none"  # the option of `eval/judged` that turns judged comparisons off
REFERENCE = "reference"  # in `eval.judged.against`: the reference answers of the prompts
REFERENCES = "the reference answers"  # their title in the report
# the comparison of one constant answer to all prompts, which no labeler should prefer
CONSTANT = "constant"
ROUND = "round_"  # prefix of the names of the answers after each round of DPO; round 0 is SFT


@dataclass
class Answer:
    """The prompts that every evaluated model answers, and the generation of these answers."""

    split: Split = MISSING
    open: int = MISSING
    max_new_tokens: int = at_least(1)
    max_dropped: float | None = share(None)
    precision: Precision = MISSING
    sampler: str | None = MISSING
    samples: int | None = between(1, 1_000, None)
    temperature: float | None = positive(None)
    form: str | None = computed(None)  # set by the pipeline: the form of another model
    runtime: SamplingRuntime = field(default_factory=SamplingRuntime)

    def __post_init__(self) -> None:
        # so that typing the default changes no node
        self.sampler = None if self.sampler == "hf" else self.sampler
        if self.samples and self.temperature is None:
            self.temperature = 1.0

    @property
    def temperatures(self) -> list[float]:
        """The temperature of each answer to a prompt: the greedy one first, then those that are drawn."""
        return [0.0, *[self.temperature or 0.0] * (self.samples or 0)]

    @property
    def greedy_alone(self) -> "Answer":
        """The block without draws."""
        return replace(self, samples=None, temperature=None)


@dataclass
class Judged:
    """Who compares the policy's answers with those of other models: nobody. Checks and held-out pairs alone tell."""

    source: ClassVar[Sequence[Source]] = ()

    labeler: str = computed(NOBODY)  # the group's option
    # whose answers are beside the policy's: base, sft, control, reference (the prompts' own answers), or a model by its
    # folder or hub id
    against: list[str] = field(default_factory=lambda: [str(Role.sft)])

    @property
    def outside_models(self) -> list[str]:
        """The models of `against` that are not of this run: folders and hub ids."""
        return [model for model in self.against if model not in (REFERENCE, *Role)]

    @property
    def read_by_eval(self) -> "Judged":
        """The part that `eval` reads."""
        return Judged()


@dataclass
class Compared(Judged):
    """The prompts whose answers are compared. Fifty audited judgements or more correct the rate."""

    # prompts of your own, with or without answers: [{path: FILE}]. []: those of held-out pairs, where preferences are a
    # file's, else the data's
    source: list[Source] = field(default_factory=list)  # type: ignore[misc]
    prompts: int | None = at_least(1, 300)  # at most, drawn by their content
    # share of prompts on which one model's answers may be the longer ones: beyond it, no rate is told that is free of
    # length
    max_longer: float = share(0.9)
    block: str = internal("eval.judged")

    @property
    def label(self) -> Label:
        """The labeler's own block, with the values of this one."""
        labeler_block = label_classes()[self.labeler]
        return labeler_block(**{key.name: vars(self)[key.name] for key in fields(labeler_block)})

    def check_comparison(self) -> None:
        """Raise UserError if the policy is compared with nothing."""
        if not self.against:
            raise UserError("eval.judged.against is empty. Use [sft].")

    @property
    def read_by_eval(self) -> "Compared":
        return Compared(labeler=self.labeler, max_longer=self.max_longer)


@dataclass
class JudgedByJudge(Compared, Judge):
    """Models at endpoints say which answer is better."""

    labeler: str = computed("judge")


@dataclass
class JudgedByRewardModel(Compared, RewardModel):
    """A reward model scores both answers."""

    labeler: str = computed("reward_model")


@dataclass
class JudgedByOwn(Compared, OwnLabeler):
    """A labeler of the user's compares or scores the answers."""

    labeler: str = computed("own")


@dataclass
class JudgedByEnsemble(Compared, Ensemble):
    """Several labelers vote on the two answers."""

    labeler: str = computed("ensemble")


@dataclass
class JudgedByLabel(Compared):
    """The labeler of candidates compares the answers, too. One that can only label candidates compares none."""

    labeler: str = computed("label")

    def with_labeler(self, label: Label) -> Judged:
        """Return the block of a labeler that compares answers, with its keys and this block's, but without an audit;
        the block of nobody if this labeler compares none."""
        judged_block = judged_classes().get(label.labeler, Judged)
        # an audit and known labels are of candidates
        changed = {"labeler": judged_block.labeler, "audit": None, "known": None}
        settings = {**vars(label), **vars(self), **changed}
        return judged_block(**{key.name: settings[key.name] for key in fields(judged_block)})


JUDGED: dict[str, type[Judged]] = {
    NOBODY: Judged,
    "label": JudgedByLabel,
    "judge": JudgedByJudge,
    "reward_model": JudgedByRewardModel,
    "own": JudgedByOwn,
    "ensemble": JudgedByEnsemble,
}


def judged_classes() -> dict[str, type[Judged]]:
    """Return the classes of `eval/judged` by the option, with those of extras."""
    return JUDGED | options_of_extras("eval/judged")


@dataclass
class Versus:
    """Two models' answers to the same prompts. `against` names the opponent of the policy. With `constant`, one answer
    that fits no prompt takes the policy's place."""

    against: str
    prompts: int
    constant: bool = False


@dataclass
class NoSuites:
    """The suites of an evaluation that asks for none. Without their extra, its fingerprint has this all the same, so
    that no model is evaluated again."""

    edition: int = computed(2)


@dataclass
class Eval:
    """The comparison of all models: pass rates, likelihoods, judged comparisons, and intervals for each figure."""

    judged: Judged = field(default_factory=Judged)
    retention: list[Source] = field(default_factory=list)
    suites: NoSuites = of_extra("suites", field(default_factory=NoSuites))
    confidence: float = limited(Limit(0, 1, open=True, below=True))
    likelihood_prompts: int = at_least(1)
    by: list[str] | None = MISSING
    precision: Precision = MISSING
    # set by the pipeline: {ROLE: TITLE} of the evaluated models
    models: dict[str, str] = computed({})
    max_new_tokens: int | None = computed(None)  # set by the pipeline: of an answer, at most
    # set by the pipeline: {NAME: TITLE} of the policy's opponents
    compared: dict[str, str] = computed({})
    # set by the pipeline: digests of the judge and of the instruments of extras
    instruments: dict[str, str] = computed({})
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)

    @property
    def read_by_eval(self) -> Self:
        """The part that `eval` reads: other nodes read these texts, and hold the settings of suites and labeler."""
        suites = type(self.suites)()
        return replace(self, retention=[], suites=suites, judged=self.judged.read_by_eval)
