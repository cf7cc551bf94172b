"""The block `data`: generated tasks, sources of rows, their mixture, and the actions on rows that an audit reports.
`plan_amounts` tells how many rows each source of a mixture contributes to sft."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from omegaconf import MISSING

from stages.config.blocks.models import Own
from stages.config.choices import (
    AUDIT_ACTIONS,
    AUDIT_CODES,
    AUDIT_FIXES,
    AUDIT_THRESHOLDS,
    CODES_FROM_COMPARING_ROWS,
    DOCUMENTS,
    ENCODINGS,
    SOURCE_CHECKS,
    Split,
)
from stages.config.errors import UserError, check_all, require_known
from stages.config.limits import (
    at_least,
    computed,
    internal,
    neutral,
    number_of_epochs,
    positive,
    random_seed,
    share,
    words,
)


@dataclass
class Tasks:
    """Generated instructions whose answers a program can check. Each key is a number of prompts. The groups `unseen_*`
    are test prompts. The groups `open_*`, `unseen_kinds` and `unseen_areas` are open requests with constraints."""

    families: list[str] = MISSING
    sft: int = MISSING
    preference: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    unseen_phrasings: int = MISSING
    unseen_tasks: int = MISSING
    rephrased: int = MISSING
    open_sft: int = MISSING
    open_preference: int = MISSING
    open_validation: int = MISSING
    open_test: int = MISSING
    unseen_kinds: int = MISSING
    unseen_areas: int = MISSING
    open_plain: int = MISSING
    open_lengths: int | None = None


# Test groups come first, so that a prompt drawn for two splits goes to the test split.
TEST_GROUPS = [
    "test",
    "unseen_phrasings",
    "unseen_tasks",
    "rephrased",
    "open_test",
    "unseen_kinds",
    "unseen_areas",
    "open_plain",
    "open_lengths",
]
SPLIT_OF_GROUP = dict.fromkeys(TEST_GROUPS, "test")
SPLIT_OF_GROUP |= {
    f"{kind}{split}": split
    for split in ("validation", "preference", "sft")
    for kind in ("", "open_")
}
OPEN_GROUPS = (*TEST_GROUPS[4:], "open_validation", "open_preference", "open_sft")


# share of rows by split, if a source has no `splits`
DEFAULT_SHARES = {"sft": 0.95, "validation": 0.05}


@dataclass(frozen=True)
class ReadLimits:
    """The most megabytes that a reader accepts. A larger line or file is an error, since it could fill the memory."""

    line: int = 64  # of one line, or of one value in a JSON array
    unpacked: int = 16_000  # of a compressed file, after decompression


@dataclass
class Source:
    """Rows from a file, a folder, a pattern or a hub dataset. Every key except `path` is optional."""

    path: str = MISSING  # a file, folder, pattern (data/*.jsonl), package:NAME/FILE or hub id
    # a branch, tag or commit of a hub dataset; null: its default branch
    revision: str | None = None
    subset: str | None = None  # a configuration of a hub dataset; null: its default configuration
    hub_split: str = "train"  # the split of a hub dataset
    # a name of docs/reference/data-formats.md; null: recognised by its columns
    format: str | None = None
    # {ROLE: COLUMN}, dots reach into a column; null: no column
    columns: dict[str, Any] = field(default_factory=dict)
    # {LABEL: WORD}: the words for the labels of a labelled set
    labels: dict[Any, str] = field(default_factory=dict)
    # keep or strip the reasoning before an answer
    reasoning: str | None = words("keep", "strip", default=None)
    # a name or a YAML file: phrases the rows of a labelled set as instructions
    task: str | None = None
    # of text files, such as cp1252 or utf-16; null: UTF-8
    encoding: str | None = words(*ENCODINGS, default=None)
    # the unit that plain text is divided into
    documents: str | None = words(*DOCUMENTS, default=None)
    licence: str | None = None  # of each row that does not state a licence
    # rows to use, drawn by their content; null: all rows
    rows: int | None = at_least(1, None)
    # an answer passes if its words (last number, expression) are equal
    check: str | None = words(*SOURCE_CHECKS, default=None)
    # {SPLIT: SHARE}; default: {sft: 0.95, validation: 0.05}
    splits: dict[str, float] = field(default_factory=dict)
    # share of SFT's rows, relative to the other sources' weights
    weight: float | None = positive(None)
    # times that each row for SFT is used; 0.5: a random half; default: 1
    epochs: float | None = number_of_epochs(None)
    limits: Any = internal()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    turns: str | None = computed(None)  # set by the pipeline from data.form.turns
    # set by the pipeline: prompts for sft need no answer, as stage=select finds one
    answered_later: bool | None = computed(None)

    @property
    def shares(self) -> dict[str, float]:
        """The share of rows that each split gets, sorted by the split's name."""
        return dict(sorted((self.splits or DEFAULT_SHARES).items()))

    @property
    def task_name(self) -> str:
        """The name of the task, or without one that of the file."""
        return Path(self.task).stem if self.task else Path(self.path).name

    def check_splits_and_columns(self, block: str) -> None:
        """Raise UserError for an unknown split, for shares or a sum of them that are no shares, or for a column that is
        no name, names or null."""
        require_known(f"{block}.splits", self.splits, list(Split))
        shares = self.splits.values()
        are_shares = all(0 <= share <= 1 for share in shares)
        if self.splits and not (are_shares and 0 < sum(shares) <= 1 + 1e-9):
            raise UserError(
                f"{block}.splits={self.splits}: each share must be from 0 to 1, and their sum above 0 to 1."
            )
        for role, column in self.columns.items():
            names = column if isinstance(column, list) else [column]
            if column is not None and not all(
                isinstance(name, str) and name.strip() for name in names
            ):
                raise UserError(
                    f"{block}.columns={{{role}: {column}}}: a column must be a name, names, or null."
                )


@dataclass
class Audit:
    """The actions on rows in which an audit finds a problem, by its code (see `stage=audit`). Other rows are kept."""

    # {CODE: ACTION}: keep, drop, quarantine or fix
    actions: dict[str, str] = field(default_factory=dict)
    # {CODE: NUMBER}, for codes with a threshold
    thresholds: dict[str, float] = field(default_factory=dict)
    # evaluation sets: a row with one of their prompts has the code contaminated
    against: list[Source] | None = None

    def check(self) -> None:
        """Raise UserError for an unknown code or action, a wrong threshold, or an action that needs test sets."""
        require_known("data.audit.actions", self.actions, AUDIT_CODES)
        require_known("data.audit.actions", self.actions.values(), AUDIT_ACTIONS)
        require_known("data.audit.thresholds", self.thresholds, AUDIT_THRESHOLDS)
        for code, action in self.actions.items():
            if action == "fix" and code not in AUDIT_FIXES:
                raise UserError(
                    f"data.audit.actions.{code}=fix: fix is only for {', '.join(AUDIT_FIXES)}. Use drop."
                )
        for code, threshold in self.thresholds.items():
            low, high = AUDIT_THRESHOLDS[code]
            if not low <= threshold <= high:
                raise UserError(
                    f"data.audit.thresholds.{code}={threshold:g} must be from {low:g} to {high:g}."
                )
        if self.actions.get("contaminated", "keep") != "keep" and not self.against:
            raise UserError(
                "data.audit.actions.contaminated needs test sets. Add data.audit.against=[{path: FILE}]."
            )

    def for_codes(self, from_comparing_rows: bool) -> "Audit":
        """Return the part for codes that come from comparing rows, or else the part for all other codes."""
        codes = {
            code
            for code in (*self.actions, *self.thresholds)
            if (code in CODES_FROM_COMPARING_ROWS) is from_comparing_rows
        }
        actions = {code: action for code, action in self.actions.items() if code in codes}
        thresholds = {code: least for code, least in self.thresholds.items() if code in codes}
        return Audit(actions, thresholds, None if from_comparing_rows else self.against)


@dataclass
class Form:
    """One form for the rows of all sources: their system messages, characters and white space.
    `data.form.system=insert` adds a system prompt to conversations without one. `drop` removes system messages. `vary`
    replaces each by one of `system_prompts`, chosen by the row's content. Messages that describe tools always stay."""

    system: str | None = words("keep", "insert", "drop", "vary", default=None)
    system_prompts: list[str] | None = None
    unicode: str | None = words("NFC", "NFKC", default=None)
    whitespace: str | None = words("trim", default=None)
    # of conversations whose turns do not alternate: strict, merge or cut
    turns: str | None = words("strict", "merge", "cut", default=None)

    def check(self) -> None:
        """Raise UserError if `data.form.system` needs another number of system prompts."""
        policy = self.system or "keep"
        needed = {"insert": "1", "vary": "2 or more"}.get(policy, "none")
        count = len(self.system_prompts or [])
        fits = {"1": count == 1, "2 or more": count > 1, "none": count == 0}
        if not fits[needed]:
            raise UserError(
                f"data.form.system={policy} needs {needed} in data.form.system_prompts."
            )


@dataclass
class OptionalSource(Source):
    """A source with the keys of `Source`."""

    path: str | None = None  # type: ignore[assignment]


@dataclass
class Mixture:
    """The numbers of SFT's rows from each source. `cap` limits a large source, so that small ones are not drowned
    (examples-proportional mixing, arXiv:1910.10683, section 3.5.2). `quotas` limits all sources of a task together."""

    cap: int | None = at_least(1, None)
    quotas: dict[str, int] = field(default_factory=dict)


@dataclass
class Data:
    """The data of a run, or of a set that only the evaluation reads: rows of files. Of a set, `of` is the setting that
    lists its sources."""

    tasks: ClassVar[Tasks | None] = None  # generated prompts and answers
    extra: ClassVar[str] = ""  # whose `prompts.py` writes all prompts
    seed: int = random_seed()
    path: str | None = neutral(lambda: None)
    file: OptionalSource = neutral(OptionalSource)
    sources: list[Source] = field(default_factory=list)
    mixture: Mixture = field(default_factory=Mixture)
    max_bad: float = share()
    form: Form = field(default_factory=Form)
    audit: Audit = field(default_factory=Audit)
    own: Own = field(default_factory=Own)
    # megabytes of a line in any data file; null: 64
    max_line: int | None = at_least(1, None, neutral=True)
    # MB of an unpacked file; null: 16,000
    max_file: int | None = at_least(1, None, neutral=True)
    of: str | None = computed(None)  # set by the pipeline

    @property
    def generated(self) -> dict[str, int]:
        """The number of generated prompts by group, for groups with any."""
        counts = {group: vars(self.tasks)[group] for group in SPLIT_OF_GROUP} if self.tasks else {}
        return {group: count for group, count in counts.items() if count}

    @property
    def limits(self) -> ReadLimits:
        return ReadLimits(self.max_line or ReadLimits.line, self.max_file or ReadLimits.unpacked)

    def check(self) -> None:
        """Raise one UserError for all faults of the form, the audit and the mixture."""
        check_all([self.form.check, self.audit.check, self.check_mixture])

    def check_mixture(self) -> None:
        """Raise UserError if only some sources for SFT have a weight, or for a quota of a task that none has."""
        weights = dict[str, float | None]()
        sft_tasks = set[str]()
        for i, source in enumerate(self.sources):
            if source.shares.get(Split.sft):
                weights[self.source_setting(i)] = source.weight
                sft_tasks.add(source.task_name)
        for key, weight in weights.items():
            if weight is None and any(weights.values()):
                raise UserError(f"{key}.weight is missing: every source for sft has one, or none.")
        require_known("data.mixture.quotas", self.mixture.quotas, sorted(sft_tasks))

    def path_setting(self, i: int) -> str:
        """Return the setting of the path of source `i`."""
        return f"{self.source_setting(i)}.path"

    def source_setting(self, i: int) -> str:
        """Return the setting of source `i`: `data.file` for the first if there is a `path`, else a place in a list."""
        place = i - bool(self.path)
        return "data.file" if place < 0 else f"{self.of or 'data.sources'}[{place}]"


@dataclass
class Generated(Data):
    """Generated prompts and answers, and rows of files beside them."""

    tasks: Tasks = field(default_factory=Tasks)  # type: ignore[misc]


DATA: dict[str, type[Data]] = {
    "file": Data,
    "verifiable": Generated,
    "demonstrations": Generated,
    "questions": Generated,
    "tiny": Generated,
}


@dataclass
class OneSource:
    """The block of `stage=source`: one source and the keys of single rows. `of`: its setting, as `data.sources[0]`."""

    source: Source
    max_bad: float
    form: Form
    audit: Audit
    own: Own
    of: str | None = internal()

    @property
    def key(self) -> str:
        """The setting that holds the path."""
        return f"{self.of}.path"


class Amount(NamedTuple):
    """The rows of a source for sft: `drawn` different rows, and `total` rows including repetitions."""

    drawn: int
    total: int


def plan_amounts(
    sources: Sequence[Source], mixture: Mixture, rows_by_source: Sequence[int]
) -> list[Amount]:
    """Return the amount of each source, from the number of rows that each source has. Quotas and the cap are applied
    first, then epochs, and then weights, by which no source gives more than its rows."""
    drawn = list(rows_by_source)
    for task, quota in mixture.quotas.items():
        places = [i for i, source in enumerate(sources) if source.task_name == task]
        rows_of_task = [rows_by_source[i] for i in places]
        for i, quota_share in zip(places, apportion(rows_of_task, quota), strict=True):
            drawn[i] = quota_share
    drawn = [min(n, mixture.cap or n) for n in drawn]
    totals = [n * (source.epochs or 1.0) for n, source in zip(drawn, sources, strict=True)]
    weights = [source.weight or 0.0 for source in sources]
    if any(weights):
        scarcest = min(
            total / weight for total, weight in zip(totals, weights, strict=True) if weight
        )
        totals = [scarcest * weight for weight in weights]
    return [Amount(n, round(total)) for n, total in zip(drawn, totals, strict=True)]


def apportion(rows_by_source: Sequence[int], quota: int) -> list[int]:
    """Return the number of rows that each source contributes to a quota, in proportion to its rows. Shares are rounded
    down, and the remaining rows go to the largest remainders."""
    total = sum(rows_by_source)
    if total <= quota:
        return [*rows_by_source]
    shares = [quota * rows // total for rows in rows_by_source]
    by_remainder = sorted(range(len(shares)), key=lambda i: -(quota * rows_by_source[i] % total))
    remaining_rows = quota - sum(shares)
    for i in by_remainder[:remaining_rows]:
        shares[i] += 1
    return shares
