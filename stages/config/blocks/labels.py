"""The block `label`: who judges candidates. One class per labeler; the group `label=NAME` picks the class.

A key that a labeler does not read is not in its class, so that it is refused on the command line and in recipes."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import ScoringRuntime
from stages.config.choices import ENCODINGS, Precision, Reading, Rubrics
from stages.config.errors import UserError, require_known
from stages.config.extras import EXTRAS, options_of_extras
from stages.config.limits import (
    at_least,
    between,
    computed,
    internal,
    neutral,
    of_extra,
    random_seed,
    share,
    words,
)

HUMAN = "human"  # the option, and the extra, that asks people


@dataclass
class Label:
    """What every labeler has: the judgements that may be missing, and an audit of the others."""

    # The labels come in a file with their candidates, so that nothing is sampled
    brings_pool: ClassVar[bool] = False
    # The labels only say which of two answers is better, without scores
    prefers: ClassVar[bool] = False
    # One answer gets a score by itself: of a draw in training, and of a base's own answers
    scores_alone: ClassVar[bool] = True

    labeler: str = computed(MISSING)  # the group's option
    # share of candidates, or of comparisons, without a judgement before the stage stops
    max_failed: float = share(0.1)
    # how many judgements, at random, are held against labels that are known: reliability.json
    audit: int | None = at_least(1, None)
    # a file with such labels, audit.jsonl filled in; null: what the prompts' checks say
    known: str | None = None
    # where these keys stand in the configuration: label, label.judge or eval.judged
    block: str = internal("label")

    @property
    def option(self) -> str:
        """The argument that picks this labeler: `label=judge`."""
        group = "eval/judged" if self.block.startswith("eval.judged") else "label"
        return f"{group}={self.labeler}"

    @property
    def own_key(self) -> str:
        """The setting of the user's code, in the blocks that have such code."""
        return f"{self.block}.own"

    @property
    def parts(self) -> "list[Label]":
        """The blocks of all labelers: this one alone, if it is no ensemble."""
        return [self]

    @property
    def of_demonstrations(self) -> "Label":
        """The block of the labeler that scores the base's own answers for SFT."""
        return self

    @property
    def names(self) -> list[str]:
        """The names of all labelers."""
        return [part.labeler for part in self.parts]

    @property
    def asked_people(self) -> "HumanPage | None":
        """The people that are asked: none, unless a labeler says otherwise."""
        return None

    @property
    def has_trained_reward_model(self) -> bool:
        """True if a labeler is a reward model without a path: the one that this run trains."""
        return any(isinstance(part, RewardModel) and part.path is None for part in self.parts)

    def with_reward_model(self, path: str) -> "Label":
        """Return the block with the path of its reward model; here the block itself, which has no such model."""
        return self

    def check(self) -> None:
        """Raise UserError for known labels without an audit that is compared with them."""
        if self.known and not self.audit:
            problem = f"{self.block}.known needs judgements to compare with"
            raise UserError(f"{problem}. Add {self.block}.audit=200.")


@dataclass
class Verifier(Label):
    """The checks that come with verifiable instructions."""

    labeler: str = computed("verifier")


@dataclass
class PreferenceDataset(Label):
    """A preference set: candidates with their labels, from a file, a folder or a hub dataset."""

    brings_pool: ClassVar[bool] = True
    scores_alone: ClassVar[bool] = False

    labeler: str = computed("dataset")
    path: str | None = None  # a file, a folder or a hub dataset; null: data.path
    revision: str | None = None  # of a hub dataset: a branch, tag or commit
    subset: str | None = None  # of a hub dataset
    hub_split: str = "train"  # of a hub dataset
    # where columns do not tell it: chosen_rejected, compared, scored or labelled; implicit: texts without a prompt
    format: str | None = None
    # {ROLE: COLUMN}: columns that are called otherwise; null leaves one out
    columns: dict[str, Any] = field(default_factory=dict)
    # {VALUE: WORD}: what a preference (left, right or tie) or a flag (true or false) means
    labels: dict[Any, str] = field(default_factory=dict)
    # of text files, such as cp1252 or utf-16; null: UTF-8
    encoding: str | None = words(*ENCODINGS, default=None)
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
            raise UserError(f"{self.option} needs a file of preferences. Set data.path=FILE.")

    @property
    def source(self) -> Source:
        """The file as a source of rows, with the keys that both blocks have."""
        common_keys = {key.name for key in fields(Source)} & vars(self).keys()
        return Source(**{key: vars(self)[key] for key in common_keys})

    @property
    def key(self) -> str:
        """The setting of the path."""
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
    comparisons: int | None = at_least(1, None)
    temperature: float = 0.0
    max_tokens: int = at_least(1, 64)  # of a reply
    # at a verdict before it is missing; after a reply without one, from another seed
    attempts: int = at_least(1, 2)
    seed: int = random_seed(0)  # another one asks everything anew

    @property
    def prefers(self) -> bool:  # type: ignore[override]
        return self.kind is Rubrics.pairwise

    @property
    def scores_alone(self) -> bool:  # type: ignore[override]
        return self.kind is Rubrics.pointwise

    def check(self) -> None:
        super().check()
        key = f"{self.block}.endpoints"
        if not self.endpoints:
            problem = f"{key}: no judge is named"
            raise UserError(f"{problem}. Set '{key}=[{{base_url: ADDRESS, model: NAME}}]'.")
        judges = [(endpoint.canonical_address, endpoint.model) for endpoint in self.endpoints]
        if len({*judges}) < len(judges):
            raise UserError(f"{key} names a model twice. Name each once.")


@dataclass
class HumanRuntime:
    """The address of the web page on which people judge."""

    # beyond this machine (0.0.0.0) a token is asked for, which stands in the link
    host: str = "127.0.0.1"
    port: int = between(0, 65_535, 8123)  # 0: a free one


@dataclass
class HumanPage:
    """People who judge answers in a browser."""

    instructions: str = "Which answer is best?"  # what people are told, above every question
    # share of the questions that several people judge, for their agreement
    overlap: float = share(0.0)
    # how many people judge such a question; of two, both must say the same
    annotators: int = at_least(2, 2)
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
        """Raise UserError for more than nine reasons, or one that is named twice."""
        if len(self.reasons) > 9 or len({*self.reasons}) < len(self.reasons):
            key = f"{self.block}.reasons"
            raise UserError(f"{key}: name at most nine, each once, for the keys 1 to 9.")


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
            way_out = f"'{self.own_key}={{file: FILE, name: NAME}}'"
            raise UserError(f"{self.option} needs a class or a function: {way_out}.")


@dataclass
class Voter:
    """One labeler of an ensemble. Its other settings are in the block of its name: `label.judge` for the judge."""

    labeler: str = MISSING  # verifier, judge, reward_model or own
    weight: float = 1.0  # of its vote
    # a candidate with a lower score from this labeler is never preferred; with combine: gate it scores 0
    veto: float | None = share(None)

    @property
    def is_gate(self) -> bool:
        """True if the labeler may veto: with `combine: gate`, it decides which candidates pass."""
        return self.veto is not None


@dataclass
class Ensemble(Label):
    """Several labelers that vote on each comparison of two candidates, and people where they disagree; or gates and a
    quality, which give each candidate a score."""

    scores_alone: ClassVar[bool] = False

    labeler: str = computed("ensemble")
    # needed: two or more, [{labeler: verifier, veto: 1.0}, {labeler: judge, weight: 2}]
    members: list[Voter] = field(default_factory=list)
    # null: members vote. gate: members with a veto decide which candidates pass, and the others' mean score ranks these
    combine: str | None = words("gate", default=None)
    judge: Judge = field(default_factory=Judge)  # its keys are those of label=judge
    reward_model: RewardModel = field(default_factory=RewardModel)  # as of label=reward_model
    own: Own = field(default_factory=Own)
    # questions about two candidates for people, those first on which members disagree most; null: nobody is asked
    people: int | None = of_extra(HUMAN, at_least(1, None))
    human: HumanPage = of_extra(HUMAN, field(default_factory=HumanPage))  # as of label=human

    @property
    def prefers(self) -> bool:  # type: ignore[override]
        return self.combine is None

    @property
    def parts(self) -> list[Label]:
        # check_members refuses others
        known = [voter.labeler for voter in self.members if voter.labeler in MEMBERS]
        return [self.member_block(labeler) for labeler in known]

    @property
    def of_demonstrations(self) -> Label:
        """The block of the verifier, which scores an answer by itself; of an ensemble without one, this block."""
        for part in self.parts:
            if isinstance(part, Verifier):
                return part
        return self

    @property
    def names(self) -> list[str]:
        return [*super().names, *([HUMAN] if self.people else [])]

    @property
    def asked_people(self) -> HumanPage | None:
        return self.human_block if self.people else None

    @property
    def human_block(self) -> HumanPage:
        """The block of people, with its place in the configuration."""
        return replace(self.human, block=f"{self.block}.human")

    def member_block(self, labeler: str) -> Label:
        """Return the block of a member, with its own settings and the ensemble's place in the configuration."""
        match labeler:
            case "verifier":
                return Verifier(max_failed=self.max_failed, block=self.block)
            case "own":
                return OwnLabeler(own=self.own, max_failed=self.max_failed, block=self.block)
            case _:
                member: Label = vars(self)[labeler]
                return replace(member, block=f"{self.block}.{labeler}")

    @property
    def without_member_settings(self) -> "Ensemble":
        """The block without the settings of its members."""
        return replace(self, judge=Judge(), reward_model=RewardModel(), own=Own())

    def with_reward_model(self, path: str) -> "Ensemble":
        return replace(self, reward_model=replace(self.reward_model, path=path))

    def check(self) -> None:
        super().check()
        if HUMAN not in EXTRAS:
            self.refuse_people()
        self.check_members()
        if self.combine:
            self.check_gates()
        for part in self.parts:
            part.check()
        self.human_block.check_people()

    def refuse_people(self) -> None:
        """Raise UserError if people are to be asked."""
        for name, is_set in {"people": self.people, "human": self.human != HumanPage()}.items():
            if is_set:
                problem = (
                    f"{self.block}.{name}: stages/extras/{HUMAN}, which asks people, is missing"
                )
                raise UserError(f"{problem}. Leave the key out, or restore the folder.")

    def check_members(self) -> None:
        """Raise UserError for fewer than two members, an unknown one or one named twice, a veto of one that gives no
        scores, weights that are all 0, or settings of a labeler that is no member."""
        if len(self.members) < 2:
            members = f"'{self.block}.members=[{{labeler: verifier}}, {{labeler: judge}}]'"
            raise UserError(f"{self.option} needs two members: {members}.")
        names = [voter.labeler for voter in self.members]
        for i, voter in enumerate(self.members):
            key = f"{self.block}.members[{i}]"
            require_known(f"{key}.labeler", [voter.labeler], MEMBERS)
            if voter.labeler in names[:i]:
                raise UserError(f"{key}.labeler={voter.labeler} is named twice. Set its weight.")
            if voter.veto is not None and self.member_block(voter.labeler).prefers:
                way_out = f"Set {self.block}.judge.kind=pointwise"
                raise UserError(f"{key}.veto needs scores. {way_out}.")
        if not any(voter.weight for voter in self.members):
            raise UserError(f"{self.block}.members: every weight is 0. Raise one.")
        settings = {
            "judge": self.judge != Judge(),
            "reward_model": self.reward_model.path,
            "own": self.own,
            "human": self.human != HumanPage(),
        }
        for name, is_set in settings.items():
            if is_set and name not in self.names:
                way_out = f"Add {{labeler: {name}}} to {self.block}.members, or {self.block}.people=200 for human"
                raise UserError(f"{self.block}.{name}: it is no member. {way_out}.")

    def check_gates(self) -> None:
        """Raise UserError for `combine: gate` without a gate or a quality, or with votes."""
        key = f"{self.block}.combine={self.combine}"
        rankers = [voter for voter in self.members if not voter.is_gate]
        if not rankers or len(rankers) == len(self.members):
            problem = (
                "a member with a veto decides which candidates pass, and one without ranks these"
            )
            members = f"'{self.block}.members=[{{labeler: verifier, veto: 1.0}}, {{labeler: own}}]'"
            raise UserError(f"{key}: {problem}. Set {members}.")
        for i, voter in enumerate(self.members):
            if self.member_block(voter.labeler).prefers:
                member = f"{self.block}.members[{i}].labeler={voter.labeler}"
                way_out = f"Set {self.block}.judge.kind=pointwise"
                raise UserError(
                    f"{member}: {self.block}.combine={self.combine} needs scores. {way_out}."
                )
        if not any(voter.weight for voter in rankers):
            problem = "every member without a veto has the weight 0"
            raise UserError(f"{self.block}.members: {problem}. Raise one.")
        if self.people:
            problem = f"with {key} nobody votes, so people have no disagreement to decide"
            raise UserError(f"{self.block}.people={self.people}: {problem}. Leave it out.")


LABELS: dict[str, type[Label]] = {
    "verifier": Verifier,
    "dataset": PreferenceDataset,
    "judge": Judge,
    "reward_model": RewardModel,
    "source_order": SourceOrder,
    "own": OwnLabeler,
    "ensemble": Ensemble,
}
MEMBERS = ("verifier", "judge", "reward_model", "own")  # of an ensemble


def label_classes() -> dict[str, type[Label]]:
    """Return the classes of labelers by the option, with those of extras."""
    return LABELS | options_of_extras("label")
