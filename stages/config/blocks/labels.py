"""The block `label`: who judges candidates. One class per labeler; the group `label=NAME` picks the class.

A key that a labeler does not read is not in its class, so that it is refused on the command line and in recipes."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import ScoringRuntime
from stages.config.choices import Precision, Reading, Rubrics
from stages.config.errors import UserError, name_block, require_known
from stages.config.limits import between, computed, internal, neutral, random_seed, share, words


@dataclass
class Label:
    """What every labeler has: the judgements that may be missing, and an audit of the others."""

    # The labels come in a file with their candidates, so that nothing is sampled
    brings_pool: ClassVar[bool] = False
    # The labels only say which of two answers is better, without scores
    prefers: ClassVar[bool] = False
    # One answer gets a score by itself: of GRPO's completions, and of a base's own answers
    scores_alone: ClassVar[bool] = True

    labeler: str = computed(MISSING)  # the group's option
    # share of candidates, or of comparisons, without a judgement before the stage stops
    max_failed: float = share(0.1)
    # how many judgements, at random, are held against labels that are known: reliability.json
    audit: int | None = between(1, 1_000_000, None)
    # a file with such labels, audit.jsonl filled in; null: what the prompts' checks say
    known: str | None = None
    # where these keys stand in the configuration: label, label.judge or eval.judged
    block: str = internal("label")

    @property
    def parts(self) -> "list[Label]":
        """The blocks of all labelers: this one; of an ensemble, those of its members."""
        return [self]

    @property
    def names(self) -> list[str]:
        """The names of all labelers; of an ensemble, its members' and people's, if it asks them."""
        return [part.labeler for part in self.parts]

    @property
    def asks(self) -> "People | None":
        """The people that are asked, if any."""
        return None

    @property
    def by_reward(self) -> bool:
        """True if the reward model that this run trains is one of the labelers."""
        return any(isinstance(part, RewardModel) and part.path is None for part in self.parts)

    def with_reward_model(self, path: str) -> "Label":
        """Return the block with the model that `by_reward` is about."""
        return self

    def check(self) -> None:
        """Raise UserError for keys that do not fit together. Messages call the block `label`."""
        if self.known and not self.audit:
            raise UserError(
                "label.known needs judgements to compare with. Add label.audit=200, which draws them."
            )


@dataclass
class Verifier(Label):
    """The checks that come with verifiable instructions."""

    labeler: str = computed("verifier")


@dataclass
class PreferenceFile(Label):
    """A preference set: candidates with their labels, from a file, a folder or a hub dataset."""

    brings_pool: ClassVar[bool] = True
    scores_alone: ClassVar[bool] = False

    labeler: str = computed("dataset")
    path: str | None = None  # a file, a folder or a hub dataset; null: data.path
    revision: str | None = None  # of a hub dataset: a branch, tag or commit
    subset: str | None = None  # of a hub dataset
    hub_split: str = "train"  # of a hub dataset
    # where columns do not tell it: chosen_rejected, compared, scored or kto
    format: str | None = None
    # {ROLE: COLUMN}: columns that are called otherwise; null leaves one out
    columns: dict[str, Any] = field(default_factory=dict)
    # {VALUE: WORD}: what a preference (left, right or tie) or a flag (true or false) means
    labels: dict[Any, str] = field(default_factory=dict)
    # keep or strip what answers begin with
    reasoning: str | None = words("keep", "strip", default=None)
    # keep (null), drop or swap rows whose rejected answer has the higher score
    contradicting: str | None = words("keep", "drop", "swap", default=None)
    licence: str | None = None  # of each row that does not state a licence
    limits: Any = internal()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    turns: str | None = computed(None)  # set by the pipeline from data.form.turns

    def check(self) -> None:
        super().check()
        if not self.path:
            raise UserError("label=dataset needs a file of preferences. Set data.path=FILE.")

    @property
    def source(self) -> Source:
        """The file as the readers of files take it."""
        of_both = {key.name for key in fields(Source)} & vars(self).keys()
        return Source(**{name: vars(self)[name] for name in of_both})

    @property
    def key(self) -> str:
        """The setting that holds the path."""
        return f"{self.block}.path"


@dataclass
class Judge(Label):
    """Models at endpoints that follow a rubric. They choose the better of two candidates, or score each candidate."""

    labeler: str = computed("judge")
    # needed: the judges, [{base_url: http://127.0.0.1:8000/v1, model: NAME}]; several are a majority, of two both, or a
    # mean
    endpoints: list[Endpoint] = field(default_factory=list)
    # pairwise: which of two is better, asked in both orders; pointwise: a score of each
    kind: Rubrics = Rubrics.pairwise
    rubric: str | None = None  # a Jinja file of your own; null: the one in stages/labelers/rubrics/
    # json: by a schema, which the server is tested for; text: a last line of words
    reading: Reading = Reading.json
    # of a prompt's candidates, two at a time; null: all of them
    comparisons: int | None = between(1, 1_000_000, None)
    temperature: float = between(0, 100, 0.0)
    max_tokens: int = between(1, 65_536, 64)  # of a reply
    # at a verdict before it is missing; after a reply without one, from another seed
    attempts: int = between(1, 100, 2)
    seed: int = random_seed(0)  # another one asks everything anew

    @property
    def prefers(self) -> bool:  # type: ignore[override]
        return self.kind is Rubrics.pairwise

    @property
    def scores_alone(self) -> bool:  # type: ignore[override]
        return self.kind is Rubrics.pointwise

    def check(self) -> None:
        super().check()
        if not self.endpoints:
            raise UserError(
                "label.endpoints: no judge is named. Set 'label.endpoints=[{base_url: ADDRESS, model: NAME}]'."
            )
        if self.comparisons and self.kind is Rubrics.pointwise:
            raise UserError(
                f"label.comparisons={self.comparisons}: a pointwise judge does not compare. "
                "Set label.kind=pairwise, or leave the key out."
            )
        judges = [(endpoint.address, endpoint.model) for endpoint in self.endpoints]
        if len({*judges}) < len(judges):
            raise UserError(
                "label.endpoints names a model twice, and its votes would count double. Name each once."
            )


@dataclass
class HumanRuntime:
    """The address of the web page on which people judge."""

    # beyond this machine (0.0.0.0) a token is asked for, which stands in the link
    host: str = "127.0.0.1"
    port: int = between(0, 65_535, 8123)  # 0: a free one


@dataclass
class People:
    """People who judge answers in a browser."""

    instructions: str = "Which answer is best?"  # what people are told, above every question
    # share of the questions that several people judge, for their agreement
    overlap: float = share(0.0)
    # how many people judge such a question; of two, both must say the same
    annotators: int = between(2, 1000, 2)
    # to tick; the keys 1 to 9
    reasons: list[str] = field(
        default_factory=lambda: ["correct", "follows the request", "complete", "clear", "short"]
    )
    seed: int = random_seed(0)  # another one draws other prompts and pairs
    # answers given elsewhere: a file as answers.jsonl in the node. It changes no fingerprint
    answered: str | None = neutral(lambda: None)
    block: str = internal("label")
    runtime: HumanRuntime = field(default_factory=HumanRuntime)

    def check_people(self) -> None:
        """Raise UserError for reasons that no key can tick, or people that no question is for."""
        if len(self.reasons) > 9 or len({*self.reasons}) < len(self.reasons):
            raise UserError(
                "label.reasons: people press 1 to 9 for a reason. Name at most nine, each once."
            )
        if self.annotators > 2 and not self.overlap:
            raise UserError(
                f"label.annotators={self.annotators}: label.overlap=0 asks each question once. "
                "Add label.overlap=0.2, or leave the key out."
            )


@dataclass
class Human(People, Label):
    """People who judge answers in a browser, and the questions that they get."""

    prefers: ClassVar[bool] = True
    scores_alone: ClassVar[bool] = False

    labeler: str = computed("human")
    # how many prompts are asked about, drawn at random; null: all
    prompts: int | None = between(1, 1_000_000_000, None)
    answers: int = between(2, 6, 2)  # shown side by side, from 2 to 6
    # questions about a prompt; null: of two answers, all pairs; of more, until each was shown
    comparisons: int | None = between(1, 1_000_000, 1)

    @property
    def asks(self) -> People:
        return self

    def check(self) -> None:
        super().check()
        self.check_people()


@dataclass
class RewardModel(Label):
    """A sequence-classification model with one output, which scores candidates."""

    labeler: str = computed("reward_model")
    # a folder of safetensors or a hub repository; null: the run's own, which reward.source says what to learn from
    path: str | None = None
    # of the hub: a branch, tag or commit; what enters the fingerprint is the commit it stands for
    revision: str | None = None
    precision: Precision = Precision.auto  # of the arithmetic
    runtime: ScoringRuntime = field(default_factory=lambda: ScoringRuntime(1, 1, "auto", None, 256))

    def with_reward_model(self, path: str) -> "RewardModel":
        return replace(self, path=path)


@dataclass
class SourceOrder(Label):
    """The place of a candidate's source in `sample.pool`: an earlier one is better (arXiv:2507.06187)."""

    scores_alone: ClassVar[bool] = False

    labeler: str = computed("source_order")


@dataclass
class OwnLabeler(Label):
    """A labeler of the user's: a class or a reward function in a Python file."""

    labeler: str = computed("own")
    own: Own = field(default_factory=Own)

    def check(self) -> None:
        super().check()
        if not self.own:
            raise UserError(
                "label=own needs a class or a function: 'label.own={file: FILE, name: NAME}'."
            )


@dataclass
class Voter:
    """One labeler of an ensemble. Its other settings are in the block of its name: `label.judge` for the judge."""

    labeler: str = MISSING  # verifier, judge, reward_model or own
    weight: float = between(0, 1_000_000, 1.0)  # of its vote
    # a candidate with a lower score from this labeler is never preferred
    veto: float | None = share(None)


@dataclass
class Ensemble(Label):
    """Several labelers that vote on each comparison of two candidates, and people where they disagree."""

    prefers: ClassVar[bool] = True
    scores_alone: ClassVar[bool] = False

    labeler: str = computed("ensemble")
    # needed: two or more, [{labeler: verifier, veto: 1.0}, {labeler: judge, weight: 2}]
    members: list[Voter] = field(default_factory=list)
    judge: Judge = field(default_factory=Judge)  # its keys are those of label=judge
    reward_model: RewardModel = field(default_factory=RewardModel)  # as of label=reward_model
    own: Own = field(default_factory=Own)
    # questions about two candidates for people, those first on which members disagree most; null: nobody is asked
    people: int | None = between(1, 1_000_000_000, None)
    human: People = field(default_factory=People)  # as of label=human

    @property
    def parts(self) -> list[Label]:
        known = [voter.labeler for voter in self.members if voter.labeler in MEMBERS]  # see check
        return [self.member(name) for name in known]

    @property
    def names(self) -> list[str]:
        return [*super().names, *(["human"] if self.people else [])]

    @property
    def asks(self) -> People | None:
        return replace(self.human, block=f"{self.block}.human") if self.people else None

    def member(self, name: str) -> Label:
        """Return the block of a member: the same as in a run in which this member labels alone."""
        match name:
            case "verifier":
                return Verifier(max_failed=self.max_failed)
            case "own":
                return OwnLabeler(own=self.own, max_failed=self.max_failed, block=self.block)
            case _:
                member: Label = vars(self)[name]
                return replace(member, block=f"{self.block}.{name}")

    @property
    def joined(self) -> "Ensemble":
        """The block without the settings of its members, which are nodes of their own."""
        return replace(self, judge=Judge(), reward_model=RewardModel(), own=Own())

    def with_reward_model(self, path: str) -> "Ensemble":
        return replace(self, reward_model=replace(self.reward_model, path=path))

    def check(self) -> None:
        super().check()
        self.check_members()
        self.check_unread()
        for part in self.parts:
            with name_block(part.block):
                part.check()
        with name_block("label.human"):
            self.human.check_people()

    def check_members(self) -> None:
        """Raise UserError for members that cannot vote together."""
        if len(self.members) < 2:
            raise UserError(
                "label=ensemble needs two members: 'label.members=[{labeler: verifier}, {labeler: judge}]'."
            )
        names = [voter.labeler for voter in self.members]
        for i, voter in enumerate(self.members):
            key = f"label.members[{i}].labeler={voter.labeler}"
            if reason := ALONE.get(voter.labeler):
                raise UserError(f"{key} cannot be a member: {reason}.")
            require_known(f"label.members[{i}].labeler", [voter.labeler], MEMBERS)
            if voter.labeler in names[:i]:
                raise UserError(f"{key} is named twice. Set its weight instead.")
            if voter.veto is not None and self.member(voter.labeler).prefers:
                raise UserError(
                    f"label.members[{i}].veto needs scores, and this judge compares. Set label.judge.kind=pointwise."
                )
        if not any(voter.weight for voter in self.members):
            raise UserError("label.members: every weight is 0, so no vote counts. Raise one.")

    def check_unread(self) -> None:
        """Raise UserError for settings of a labeler that is no member, and for a member without them."""
        names = [voter.labeler for voter in self.members]
        if bool(self.own) is not ("own" in names):
            raise UserError(
                "label.members and label.own need each other: add the member {labeler: own}, and name its class with "
                "label.own={file: FILE, name: NAME}."
            )
        settings = {"judge": self.judge != Judge(), "reward_model": self.reward_model.path}
        for name, is_set in settings.items():
            if is_set and name not in names:
                raise UserError(
                    f"label.{name}: it is no member. Add {{labeler: {name}}} to label.members, or leave the key out."
                )
        if self.human != People() and not self.people:
            raise UserError("label.human: this ensemble asks no people. Add label.people=200.")


LABELS: dict[str, type[Label]] = {
    "verifier": Verifier,
    "dataset": PreferenceFile,
    "judge": Judge,
    "human": Human,
    "reward_model": RewardModel,
    "source_order": SourceOrder,
    "own": OwnLabeler,
    "ensemble": Ensemble,
}
MEMBERS = ("verifier", "judge", "reward_model", "own")  # of an ensemble
# Labelers that cannot be members of an ensemble, and why or what to do instead
ALONE = {
    "human": "set label.people=200 to ask people where the members disagree",
    "dataset": "the file has its own candidates, which no other member has seen",
    "ensemble": "name its members themselves",
    "source_order": "it does not read the answers",
}
