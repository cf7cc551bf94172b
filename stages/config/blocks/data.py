"""What the data is: generated tasks, other people's files, and what an audit does with their rows."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.models import Own
from stages.config.choices import DOCUMENTS, OF_ROWS_AMONG_ROWS, SOURCE_CHECKS
from stages.config.limits import between, computed, positive, random_seed, reading_bound, setting_name, share, words


@dataclass
class Tasks:
    """Verifiable instructions, generated from a seed: prompts per group. `unseen_*` are test prompts; `open_*`,
    `unseen_kinds` and `unseen_areas` are open requests under constraints."""

    seed: int = random_seed()
    families: list[str] = MISSING
    sft: int = between(0, 1_000_000)
    preference: int = between(0, 1_000_000)
    validation: int = between(0, 1_000_000)
    test: int = between(0, 1_000_000)
    unseen_phrasings: int = between(0, 1_000_000)
    unseen_tasks: int = between(0, 1_000_000)
    rephrased: int = between(0, 1_000_000)
    open_sft: int = between(0, 1_000_000)
    open_preference: int = between(0, 1_000_000)
    open_validation: int = between(0, 1_000_000)
    open_test: int = between(0, 1_000_000)
    unseen_kinds: int = between(0, 1_000_000)
    unseen_areas: int = between(0, 1_000_000)
    open_plain: int = between(0, 1_000_000)


# Test prompts come first, so that a prompt which two splits would draw belongs to the test.
SPLIT_OF_GROUP = {
    "test": "test",
    "unseen_phrasings": "test",
    "unseen_tasks": "test",
    "rephrased": "test",
    "open_test": "test",
    "unseen_kinds": "test",
    "unseen_areas": "test",
    "open_plain": "test",
    "validation": "validation",
    "open_validation": "validation",
    "preference": "preference",
    "open_preference": "preference",
    "sft": "sft",
    "open_sft": "sft",
}


OPEN_GROUPS = (
    "open_test",
    "unseen_kinds",
    "unseen_areas",
    "open_plain",
    "open_validation",
    "open_preference",
    "open_sft",
)


DEFAULT_SHARES = {"sft": 0.95, "validation": 0.05}  # of a source that names none


@dataclass(frozen=True)
class ReadLimits:
    """How many megabytes of a file are read: of a line, or of a value in an array; and of a packed file, unpacked."""

    line: int = 64
    unpacked: int = 16_000

    @classmethod
    def of(cls, line: int | None, unpacked: int | None) -> "ReadLimits":
        """The limits that a user set, and the usual ones where they are null."""
        return cls(cls.line if line is None else line, cls.unpacked if unpacked is None else unpacked)


@dataclass
class Source:
    """A file, folder, pattern or hub dataset. `columns` says which column has which role, with dots also inside of
    one; null leaves it out. `labels` are words for labels. `reasoning` before answers is kept or stripped. `task`
    phrases a labelled set as instructions, by its name or a YAML file. `documents` divides plain text. `licence` is
    that of all rows but those with one of their own. `splits` gives the share of its rows for each split (default: sft
    0.95, validation 0.05), decided by the content of the prompt. `check` makes prompts with an answer verifiable:
    `label` (the same words), `number` (the same last number).

    `epochs` is how often its rows for sft come (default 1; of a part some rows, drawn), `weight` its share of them
    against the weights of the others: as many rows as the scarcest source has for its share."""

    path: str = MISSING
    revision: str | None = None
    subset: str | None = None
    hub_split: str = "train"
    format: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: dict[Any, str] = field(default_factory=dict)
    reasoning: str | None = words("keep", "strip", default=None)
    task: str | None = None
    documents: str | None = words(*DOCUMENTS, default=None)
    licence: str | None = None
    rows: int | None = between(1, 1_000_000_000, None)
    check: str | None = words(*SOURCE_CHECKS, default=None)
    splits: dict[str, float] = field(default_factory=dict)
    weight: float | None = positive(1_000_000, None)
    epochs: float | None = positive(1000, None)
    limits: Any = setting_name()  # ReadLimits, set by the pipeline from data.max_line and data.max_file

    @property
    def shares(self) -> dict[str, float]:
        """Of its rows, by split, in the order of their names."""
        return dict(sorted((self.splits or DEFAULT_SHARES).items()))

    @property
    def task_name(self) -> str:
        """What a quota calls it."""
        return Path(self.task).stem if self.task else Path(self.path).name


@dataclass
class Audit:
    """What becomes of rows that an audit finds something in, by code (`stage=audit` tells them, with examples): keep,
    drop, quarantine, or fix where that is unambiguous; a code without an action keeps its rows. `thresholds` are of
    codes that have one. `against` are evaluation sets, none of whose prompts may stand in a row that is contaminated
    by it."""

    actions: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    against: list[Source] | None = None

    @property
    def of_single_rows(self) -> "Audit":
        """What one row tells by itself."""
        return self._of({*self.actions, *self.thresholds} - {*OF_ROWS_AMONG_ROWS}, self.against)

    @property
    def among_rows(self) -> "Audit":
        """What is found by the rows before one."""
        return self._of(OF_ROWS_AMONG_ROWS, None)

    def _of(self, codes: Collection[str], against: list[Source] | None) -> "Audit":
        actions = {code: action for code, action in self.actions.items() if code in codes}
        return Audit(actions, {code: least for code, least in self.thresholds.items() if code in codes}, against)


@dataclass
class Form:
    """One form for the rows of all sources. `system`: a conversation keeps its system message; where it has none it
    gets the one of `system_prompts` (insert); it loses its own (drop), or has one of `system_prompts` in its place,
    drawn by its content (vary). One that tells of tools stays. `unicode`: the normal form of characters. `whitespace`,
    trim: one sign at the end of lines and no space before it, plain spaces, no empty lines around a text."""

    system: str | None = words("keep", "insert", "drop", "vary", default=None)
    system_prompts: list[str] | None = None
    unicode: str | None = words("NFC", "NFKC", default=None)
    whitespace: str | None = words("trim", default=None)


@dataclass
class OptionalSource(Source):
    """A source that a run can do without."""

    path: str | None = None  # type: ignore[assignment]


@dataclass
class Mixture:
    """How rows of sources mix for sft: `cap` is how many a source counts for at most, so that the others show beside a
    large one (examples-proportional mixing, arXiv:1910.10683, section 3.5.2), `quotas` how many the sources of a task
    have together."""

    cap: int | None = between(1, 1_000_000_000, None)
    quotas: dict[str, int] = field(default_factory=dict)


@dataclass
class Data:
    """`tasks` is None for sets that the evaluation alone reads; `of` is then what names them.

    `max_line` and `max_file` bound what is read of any file of rows, preferences or candidates, in megabytes: a line
    (null: 64), and what a packed file unpacks to (null: 16,000)."""

    tasks: Tasks | None = field(default_factory=Tasks)
    sources: list[Source] = field(default_factory=list)
    mixture: Mixture = field(default_factory=Mixture)
    max_bad: float = share()
    form: Form = field(default_factory=Form)
    audit: Audit = field(default_factory=Audit)
    own: Own = field(default_factory=Own)
    max_line: int | None = reading_bound(1, 100_000)
    max_file: int | None = reading_bound(1, 100_000_000)
    of: str | None = computed(None)

    @property
    def limits(self) -> ReadLimits:
        return ReadLimits.of(self.max_line, self.max_file)

    def key(self, i: int) -> str:
        """What the path of a source is called on the command line."""
        return f"{self.of or 'data.sources'}[{i}].path"


@dataclass
class OneSource:
    """What `stage=source` reads, and of `data` what concerns rows one by one; the pipeline divides it. `of` is what
    names the source."""

    source: Source
    max_bad: float
    form: Form
    audit: Audit
    own: Own
    of: str | None = setting_name()

    @property
    def key(self) -> str:
        """What the path is called on the command line."""
        return f"{self.of}.path"
