"""The format of a file, told from its first rows: which column is read as what."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, nearest
from stages.formats.answered import Answered
from stages.formats.chat import Chat
from stages.formats.chosen_rejected import ChosenRejected, is_whole
from stages.formats.columns import Beside, ChangesMeaning, Path, at, lacking, resolved, tops, unread
from stages.formats.compared import Compared
from stages.formats.files import Table
from stages.formats.format import STATED, Format, Said
from stages.formats.kto import KTO
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.row import BadRow
from stages.formats.scored import Scored
from stages.formats.several import Several
from stages.formats.texts import Texts
from stages.formats.turns import empty
from stages.store import parts

# In this order: a file has the first of these formats that most of its first rows are of.
EXAMPLES: list[type[Format]] = [KTO, Chat, Answered, ChosenRejected, Compared, Scored, Prompts, Texts]
PREFERENCES: list[type[Format]] = [ChosenRejected, Compared, Scored, KTO]
CANDIDATES: list[type[Format]] = [Several, Chat, Answered]


class Wanted(StrEnum):
    """What a source is read for."""

    answers = "messages, a prompt with its completion, or text"
    prompts = "messages or a prompt"
    preferences = "a chosen and a rejected answer, two and a preference, several with scores, or one and a flag"
    candidates = "messages or a prompt, with completions or a completion"


FORMATS = {
    Wanted.answers: EXAMPLES,
    Wanted.prompts: EXAMPLES,
    Wanted.preferences: PREFERENCES,
    Wanted.candidates: CANDIDATES,
}
Getters = list[tuple[str, Callable[[dict[str, Any]], Any]]]  # a role, and what gets its value from a row
PEEKED = 200  # rows
SHOWN = 9  # columns, in an error


@dataclass(frozen=True)
class Columns:
    """Of rows that have the same ones: the column of every role and what gets it, which roles are `stated`, and
    what stands beside."""

    paths: dict[str, Path]
    getters: Getters
    stated: list[str]
    beside: Beside


@dataclass
class Layout:
    """A file's format, and the column of every role in it."""

    format: Format
    first: dict[str, Path]  # of the roles that the first rows have
    given: Mapping[str, Path | None]
    asks: bool = False  # only for what was asked
    known: dict[tuple[str, ...], Columns] = field(default_factory=dict)

    def columns(self, row: dict[str, Any]) -> Columns:
        """The columns of a row: those of the first rows, and others that only some rows have."""
        if (found := self.known.get(tuple(row))) is None:
            known = dict.fromkeys([column for path in self.first.values() for column in tops(path)])
            named = {**self.format.named(row), **STATED}
            more = {role: names for role, names in named.items() if role not in self.first}
            paths = self.first | resolved(row, more, {**self.given, **known})
            decided = {name for role in self.given for name in self.format.roles.get(role, "").split()}
            texts, form = isinstance(self.format, Texts), self.format
            beside = Beside.of(row, paths, form.dropped, decided, texts, form.weighed)
            found = self.known[tuple(row)] = Columns(paths, getters_of(paths, row), [*STATED.keys() & paths], beside)
        return found

    def read(self, row: Any) -> tuple[Said, list[str]]:
        """What a row says, and those of its columns that are not read.

        Raises:
            BadRow: where it cannot be used.
            ChangesMeaning: for a column that would change that and is not read.
        """
        if not isinstance(row, dict):
            raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
        columns = self.columns(row)
        values = values_of(row, columns.getters)
        stated: dict[str, Any] = {role: in_words(values.pop(role)) for role in columns.stated if role in values}
        said = self.said(row, values, columns.paths)
        return (said._replace(**stated) if stated else said), unread(row, values, columns.beside)

    def said(self, row: dict[str, Any], values: dict[str, Any], paths: Mapping[str, Path]) -> Said:
        """As `read`, by the values of a row's roles."""
        for role in self.format.needs:
            if role not in values:
                column = str(self.first.get(role, role))
                raise BadRow(column, "is empty" if column in row else "the column is missing")
        try:
            return Said(self.format.request(values), []) if self.asks else self.format.said(values)
        except BadRow as bad:
            path = paths.get(bad.field)
            raise BadRow(path if isinstance(path, str) else bad.field, bad.reason) from None
        except ChangesMeaning as error:
            role, dot, key = error.column.partition(".")
            raise ChangesMeaning(f"{paths[role]}{dot}{key}", error.reason) from None

    def told(self) -> str:
        """`{prompt: instruction, completion: output}`: what `columns` would say."""
        asked = ("system", "history", "messages", "prompt", "input")
        roles = sorted(self.first, key=lambda role: role not in asked)
        return f"{{{', '.join(f'{role}: {self.first[role]}' for role in roles)}}}"


def layout_of(table: Table, source: Source, key: str, wanted: Wanted) -> Layout | None:
    """The layout of a file, for preferences or for examples; None where the file has no row that can be read.

    Raises:
        UserError: where it has no format of ours, naming its columns and the setting that would say what they are.
    """
    block, _, _ = key.rpartition(".")
    if not kinds(source, wanted):
        known = ", ".join(map(name_of, FORMATS[wanted]))
        raise UserError(f"{block}.format={source.format}: here are read {wanted}; the formats of that are {known}.")
    rows = [row.value for row in islice(table.rows(), PEEKED) if not row.error and isinstance(row.value, dict)]
    if not rows:
        return None
    given = dict(source.columns)
    columns = list(dict.fromkeys(column for row in rows for column in row if not empty(row[column])))
    best: tuple[int, Layout] | None = None
    for kind in kinds(source, wanted):
        layout = laid_out(kind(source), columns, given)
        usable = sum(fits(layout, row) for row in rows)
        if usable and (best is None or usable > best[0]):
            best = usable, layout
        if 2 * usable >= len(rows):
            break
    if best is None:
        raise unknown(table, source, block, columns, wanted)
    layout = best[1]
    if wanted is Wanted.answers:
        refuse_unanswered(table, layout, source, block, columns, rows[0])
    layout.asks = (
        wanted is Wanted.prompts and layout.format.compares and bool({"prompt", "messages"} & {*layout.first})
    )
    if not layout.asks:
        learn(table, layout, rows, f"{block}.labels={{VALUE: WORD, …}} says what a label means.")
    return layout


def learn(table: Table, layout: Layout, rows: list[dict[str, Any]], way_out: str) -> None:
    """Have a format look at a file's rows before it reads them."""
    seen = (row.value for row in table.rows() if isinstance(row.value, dict)) if layout.format.learns_all else rows
    values = (values_of(row, layout.columns(row).getters) for row in seen)
    try:
        layout.format.learn((v for v in values if v.keys() >= {*layout.format.needs}), layout.first, way_out)
    except UserError as error:
        raise UserError(f"{table.name}: {error}") from error


def kinds(source: Source, wanted: Wanted) -> list[type[Format]]:
    """The formats that a source may have."""
    if source.task:
        return [Phrased]
    return [kind for kind in FORMATS[wanted] if source.format in (None, name_of(kind))]


def name_of(kind: type[Format]) -> str:
    """The word by which `format` of a source names a format."""
    return kind.__module__.rpartition(".")[2]


def laid_out(format: Format, columns: list[str], given: Mapping[str, Path | None]) -> Layout:
    return Layout(format, resolved(columns, {**format.named(columns), **STATED}, given), given)


def fits(layout: Layout, row: dict[str, Any]) -> bool:
    """Whether a row is of this format: it has what is needed, and no column that would mean something else."""
    unknown = {role for role, path in layout.given.items() if path is not None} - layout.first.keys()
    values = values_of(row, getters_of(layout.first, row))
    if unknown or not values.keys() >= {*layout.format.needs} or not layout.format.fits(values):
        return False
    columns = layout.columns(row)
    try:
        unread(row, values_of(row, columns.getters), columns.beside)
    except ChangesMeaning:
        return not isinstance(layout.format, Texts)  # else it is told by name
    return True


def getters_of(paths: Mapping[str, Path], columns: Iterable[str]) -> Getters:
    """What gets the value of every role from a row that has these columns."""
    whole = [*columns]
    return [(role, itemgetter(path) if path in whole else partial(at, path=path)) for role, path in paths.items()]


def values_of(row: dict[str, Any], getters: Getters) -> dict[str, Any]:
    """What a row says by role, where it says something."""
    return {role: value for role, get in getters if not empty(value := get(row))}


def in_words(value: Any) -> str:
    """A licence or an origin, of which a row may have several."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def unknown(table: Table, source: Source, block: str, columns: list[str], wanted: Wanted) -> UserError:
    """That a file has no format of ours, and what would say which it has."""
    told = f"{table.name}: no known columns among {first_of(columns)}"
    roles = {role for kind in kinds(source, wanted) for role in kind(source).roles} | {*STATED}
    for role, path in source.columns.items():
        if path is not None and role not in roles:
            return UserError(f"{block}.columns: {role!r} is no role here.{nearest(role, roles)}")
    if error := no_such_column(source, block, table.name, columns):
        return error
    if source.task:
        expected = "; ".join(f"{role} ({names})" for role, names in Phrased(source).roles.items())
        return UserError(f"{told}. task={source.task} wants {expected}: {block}.columns={{ROLE: COLUMN}} names them.")
    labelled = [] if wanted in (Wanted.preferences, Wanted.candidates) else parts.labelled()
    fitting = [task for task in labelled if suits(task, source, columns)]
    if fitting:
        return UserError(
            f"{told}: this is a labelled set. {block}.task=TASK makes instructions of it, TASK being one of "
            f"{', '.join(fitting)}; {block}.columns={{prompt: COLUMN, completion: COLUMN}} takes it as it is."
        )
    answers = "chosen: COLUMN, rejected: COLUMN" if wanted is Wanted.preferences else "completion: COLUMN"
    told += f"; {block}.columns={{OTHER: null}} leaves the others beside text out" * ("text" in columns)
    return UserError(f"{told}. Wanted: {wanted}. {block}.columns={{prompt: COLUMN, {answers}}} names them.")


def no_such_column(source: Source, block: str, where: str, columns: list[str]) -> UserError | None:
    """That a role is given a column which is not among these."""
    if not (found := lacking(source.columns, columns)):
        return None
    role, column = found
    told = f"{block}.columns={{{role}: {column}}}: {where} has no such column"
    return UserError(f"{told}. There are: {first_of(columns)}.")


def first_of(columns: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    return f"{', '.join(columns[:SHOWN])}{more}"


def refuse_unanswered(
    table: Table, layout: Layout, source: Source, block: str, columns: list[str], row: dict[str, Any]
) -> None:
    """Raise UserError for a file that has no one answer to each request, where one is to be learnt from or compared
    with."""
    trained = block.startswith("data.sources")  # others are for the evaluation, which has one split and no pairs
    shares = f" {block}.splits={{preference: 1.0}} takes its prompts alone;" * trained
    if isinstance(layout.format, Prompts):
        fitting = [task for task in parts.labelled() if suits(task, Source(), columns)]
        phrased = f" {block}.task={fitting[0]} phrases them;" if fitting else ""
        raise UserError(
            f"{table.name}: {layout.told()} are requests without answers. The columns are {', '.join(columns)}: "
            f"{block}.columns={{completion: COLUMN}} names the answers;{phrased}{shares}".rstrip(";")
            + "."
        )
    if layout.format.compares:
        subset = f" label.subset={source.subset}" if source.subset else ""
        pairs = f" label=dataset label.path={source.path}{subset} trains on them;" * trained
        ways = f"{pairs}{chosen_alone(layout, block, row)}{shares}".rstrip(";")
        raise UserError(
            f"{table.name}: {layout.told()} are preferences, and one answer to each request is wanted"
            + (f":{ways}." if ways else ".")
        )


def chosen_alone(layout: Layout, block: str, row: dict[str, Any]) -> str:
    """The setting that has only the chosen answers read."""
    chosen = layout.first.get("chosen")
    if chosen is None:
        return ""
    asked = f"prompt: {layout.first['messages']}, " if "messages" in layout.first else ""
    role = "messages" if is_whole(at(row, chosen)) else f"{asked}completion"
    return f" {block}.columns={{{role}: {chosen}, rejected: null}} takes the chosen ones;"


def suits(task: str, source: Source, columns: list[str]) -> bool:
    """Whether a file has the columns of a ready-made task."""
    format = Phrased(replace(source, task=task))
    return {*format.needs} <= resolved(columns, format.roles, source.columns).keys()
