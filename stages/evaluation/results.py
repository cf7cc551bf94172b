"""The results of an evaluation: what `results.json` holds, as types.

Only `write_results` and `read_results` know the file. A new figure is a field here; a part that a single module knows
is one of `sections`, which that module reads."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from stages.config.errors import UserError
from stages.evaluation.intervals import Interval
from stages.store import safe_files
from stages.store.manifest import manifest_of
from stages.store.sealed_json import load_json, rebuild_command
from stages.store.typed_json import EMPTY, FLAT, OMITTED, decode, encode_fields

FILE = "results.json"
# The first version of stage `eval` whose file has this shape.
OLDEST_VERSION = 34

# Of each model, by role, and of each paired difference, by name: `policy-sft`.
Intervals = dict[str, Interval]


class ByName:
    """The base class of figures with an interval for each role and difference, by name: `figures["policy-sft"]`."""

    intervals: Intervals

    def __getitem__(self, name: str) -> Interval:
        return self.intervals[name]

    def __contains__(self, name: str) -> bool:
        return name in self.intervals


PLAIN_SFT = "plain SFT"  # the control of pairs, in a sentence
PLAIN_TITLES = ("Control", "Plain SFT")  # its titles: in the evaluation, and on pages


@dataclass(frozen=True)
class Rates(ByName):
    """Rates and differences on a number of prompts, or of pairs of twins."""

    prompts: int
    intervals: Intervals = field(metadata=FLAT)


@dataclass(frozen=True)
class Row(ByName):
    """Pass rates and differences on prompts with checks. `tasks_drawn`: the intervals are over other tasks like these,
    else over other prompts of these tasks; `set`: the user's file that all prompts are of, or ''; `note`: why nothing
    can be said, or ''; `gained`, `lost`: the prompts that only the policy passes, and only the model before it."""

    prompts: int
    tasks: int
    tasks_drawn: bool
    set: str
    intervals: Intervals = field(metadata=FLAT)
    note: str
    gained: int
    lost: int


@dataclass(frozen=True)
class Group(Row):
    """A group of prompts. `containing`: rates of answers that contain the reference in any form, on the prompts that
    have one."""

    containing: Rates | None = field(metadata=EMPTY)


@dataclass(frozen=True)
class Matched:
    """The part of the main difference that comes from endings and length: rates on subsets that depend on the answers,
    the gain, and the gain from prompts on which only the policy ended its answer."""

    views: dict[str, Row]
    gain: float
    gain_from_stopping: float


@dataclass(frozen=True)
class Consistency:
    """The mean standard deviation over a request's phrasings, and the shares of requests right in all, some and no
    phrasings."""

    spread: float
    always: float
    sometimes: float
    never: float


@dataclass(frozen=True)
class Rephrased:
    """Requests in several phrasings, by role."""

    requests: int
    phrasings: int
    by_role: dict[str, Consistency] = field(metadata=FLAT)

    def __getitem__(self, role: str) -> Consistency:
        return self.by_role[role]


@dataclass(frozen=True)
class Behaviour:
    """By role the mean tokens of an answer and the shares of answers that end by themselves and that loop; if some
    answers have thoughts, their share and the mean tokens of a thought."""

    mean_tokens: dict[str, float]
    stop_rate: dict[str, float]
    loops: dict[str, float]
    thoughts: dict[str, float] | None = field(default=None, metadata=OMITTED)
    thought_tokens: dict[str, float] | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class OpenPrompts:
    """Prompts without checks, and the answers to them."""

    prompts: int
    behaviour: Behaviour = field(metadata=FLAT)


@dataclass(frozen=True)
class BlindRule:
    """The rule that is right on most training pairs without reading an answer. `share`: of the held-out pairs on which
    it is right; `unexplained`: how many it is wrong or silent on; `gained`: on how many of these a model gained more on
    the better answer, by role; `shares`: these counts as shares with intervals, none if no pair is unexplained."""

    rule: str
    training_pairs: int
    training_share: float
    share: Interval
    wrong: int
    silent: int
    unexplained: int
    gained: dict[str, int]
    shares: dict[str, Interval]


@dataclass
class PairGroup:
    """The held-out pairs with a `value` in a `column`. `right`: the pairs in order; a tie counts half. `share`: of pairs
    in order, and `rest`: of all other pairs. `margin`: in nats a token. `p`: the probability of so few prompts in order by
    chance. `is_reversed`: fewer than half are in order, more than half of the rest, beyond chance; `is_certain`: far
    beyond."""

    column: str
    value: str
    pairs: int
    prompts: int
    right: float
    share: Interval
    rest: Interval
    margin: Interval
    p: float
    is_reversed: bool = False
    is_certain: bool = False

    @property
    def name(self) -> str:
        return f"{self.column} = {self.value}"


@dataclass(frozen=True)
class PairGroups:
    """Held-out pairs by group. `fell`: by how much the log-prob of the answer that fell less fell, in nats a token."""

    fell: float
    groups: list[PairGroup]


@dataclass(frozen=True)
class Learnt:
    """The shares of held-out pairs whose chosen answer a model favours: by its log-ratio to the model before, by summed
    log-prob, by log-prob per token. `of`: what is counted; `longer`: the share whose chosen answer is the longer one;
    `note`: why nothing can be said, or ''; `moved`: by role, how far training moved an answer's log-prob, in nats per
    token; `repeats`: the pairs that nearly equal a training pair; `others`: all figures of the other pairs, None if no
    pair repeats; `by`: groups of pairs, None unless `eval.by` asks for them."""

    pairs: int
    of: str
    prompts: int
    ratio: Intervals
    sum: Intervals
    per_token: Intervals
    longer: Interval
    note: str
    moved: dict[str, float]
    blind: BlindRule | None = field(metadata=EMPTY)
    repeats: int = 0
    others: "Learnt | None" = field(default=None, metadata=EMPTY)
    by: PairGroups | None = field(default=None, metadata=OMITTED)

    @property
    def claimed(self) -> "Learnt":
        """The figures that claims are about: of the pairs that repeat no training pair."""
        return self.others or self


@dataclass(frozen=True)
class MatchedRate:
    """The length-controlled win rate; `used`: the share of the prompts that a plain rate of equal precision needs."""

    win_rate: Interval
    used: float


@dataclass(frozen=True)
class PeopleRate:
    """The win rate by people, who judged `known` of the comparisons; `decides`: these are enough for the verdict."""

    known: int
    decides: bool
    win_rate: Interval
    by: str


@dataclass(frozen=True)
class WinRates:
    """The policy's win rate, at equal lengths (or why not: `unmatched`), by people, and of judges that ignore the text.
    `longer`: the share of comparisons with a longer answer of the policy; `detectable`: the smallest difference from
    one half that so many comparisons detect; `effect`: the verdict."""

    win_rate: Interval
    longer: float
    matched: MatchedRate | None
    unmatched: str
    people: PeopleRate | None
    nulls: dict[str, Interval]
    detectable: float
    effect: str


@dataclass(frozen=True)
class Opposed:
    """The policy's answers beside those of another model, `title`, to a number of prompts. `alike`: both are one text."""

    title: str
    labeler: str
    prompts: int
    alike: int


@dataclass(frozen=True)
class Waiting:
    """A comparison of which a number of questions wait for people."""

    opposed: Opposed = field(metadata=FLAT)
    waiting: int
    detectable: float


@dataclass(frozen=True)
class JudgedComparison:
    """A comparison that was judged. `missing`: comparisons without a verdict, by reason; `flips`: choices that changed
    with the order, None if each was shown in one order; `tokens`: the mean length of either answer; `note`: why nothing
    can be said, or None."""

    opposed: Opposed = field(metadata=FLAT)
    judged: int
    missing: dict[str, int]
    ties: int
    flips: int | None
    tokens: dict[str, float]
    rates: WinRates = field(metadata=FLAT)
    note: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Divergence:
    """The KL from the model before, in nats, on a model's own answers."""

    per_token: float
    per_answer: float
    answers: int


@dataclass(frozen=True)
class References:
    """The mean log-prob per token of the reference answers, by role, and the differences with intervals."""

    prompts: int
    values: dict[str, float | Interval] = field(metadata=FLAT)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def mean(self, role: str) -> float:
        value = self.values[role]
        assert not isinstance(value, Interval)
        return value

    def difference(self, name: str) -> Interval:
        value = self.values[name]
        assert isinstance(value, Interval)
        return value


@dataclass
class Retained:
    """The test that the policy's mean `what` is not below the mean of `against` by more than `margin`. `p`: the
    p-value; `holds`: it holds after the correction for all tests; `needed`: the prompts (or texts) at which it holds in
    9 of 10 evaluations of a policy that lost nothing."""

    what: str
    against: str
    policy: float
    other: float
    margin: float
    p: float
    prompts: int
    needed: int | None
    holds: bool = False


@dataclass(frozen=True)
class Retention:
    """The tests of what the policy kept of the models before it, and a sentence about them."""

    claims: list[Retained]
    sentence: str


@dataclass(frozen=True)
class Results:
    """The results of an evaluation. Parts that it did not measure are None or empty.

    Args:
        models: their titles by role; `before`: the role of the model that the policy was trained from.
        main_difference: the name of the difference that the verdict is about; `differences`: their titles by name.
        endpoint: the group of prompts that the verdict is about; `primary`: its rates.
        kinds, tasks: rates by side (seen, unseen, tuning), then by kind or task.
        behaviour, shown_on, endings: length and endings of the answers that the verdict is about, the name of their
            prompts, and the clause on endings.
        gives_verdict: the parts of the verdict, the most important first: checks, learnt, judged.
        kl: by role.
        sections: parts of single modules by name, each of which its module reads.
        cautions: the clause that names what became worse, or ''.
        rehearsal: the sentence on a run whose base has random weights, or None."""

    models: dict[str, str]
    before: str
    main_difference: str
    differences: dict[str, str]
    decoding: dict[str, int | None]
    endpoint: str | None
    primary: Group | None
    groups: dict[str, Group]
    kinds: dict[str, dict[str, Row]]
    tasks: dict[str, dict[str, Row]]
    matched: Matched | None = field(metadata=EMPTY)
    rephrased: Rephrased | None = field(metadata=EMPTY)
    behaviour: Behaviour = field(metadata=FLAT)
    endings: str
    shown_on: str | None
    open: dict[str, OpenPrompts]
    learnt: Learnt | None = field(metadata=EMPTY)
    judged: dict[str, JudgedComparison | Waiting]
    gives_verdict: list[str]
    kl: dict[str, Divergence]
    references: References | None = field(metadata=EMPTY)
    retention: Retention | None = field(metadata=EMPTY)
    sections: dict[str, object] = field(metadata=FLAT)
    cautions: str
    verdict: str
    rehearsal: str | None = field(default=None, metadata=OMITTED)

    @property
    def policy(self) -> str:
        """The policy's title."""
        return self.models["policy"]

    @property
    def has_plain_control(self) -> bool:
        """True if the evaluated control is plain SFT on the chosen answers, and not one that draws."""
        return self.models.get("control") in PLAIN_TITLES

    @property
    def control_in_words(self) -> str:
        """The name of the evaluated control in a sentence: `plain SFT`, `best draws` or `best of one pool`."""
        if self.has_plain_control:
            return PLAIN_SFT
        title = self.models["control"]
        return f"{title[:1].lower()}{title[1:]}"

    @property
    def title_before(self) -> str:
        """The title of the model that the policy was trained from."""
        return self.models[self.before]


def write_results(path: Path, results: Results) -> None:
    """Write the `results.json` of an evaluation."""
    safe_files.write(path, json.dumps(encode_fields(results), indent=1))


def read_results(folder: Path) -> Results:
    """Read the results of a published evaluation. Raise UserError if an older version of the stage wrote them in
    another shape, and Damaged if they cannot be read."""
    version = manifest_of(folder)["version"]
    if version < OLDEST_VERSION:
        raise UserError(
            f"{folder / FILE}: version {version} of stage eval wrote it, and its figures are other ones since version "
            f"{OLDEST_VERSION}. To evaluate again, type: {rebuild_command(folder)}"
        )
    return load_json(folder / FILE, parse_results)


def parse_results(content: object) -> Results:
    """Return the content of `results.json` as results. Raise ValueError if it has another shape."""
    return decode(Results, content)
