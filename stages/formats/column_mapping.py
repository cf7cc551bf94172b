"""The formats that a file may have, and which column of it is read as what."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from operator import itemgetter
from typing import Any

from stages.config.blocks.data import Source
from stages.formats.answered import Answered
from stages.formats.chat import Chat
from stages.formats.chosen_rejected import ChosenRejected
from stages.formats.columns import Beside, ChangesMeaning, Path, at, has, inside, normal, resolved, tops, unread
from stages.formats.compared import Compared
from stages.formats.continued import Continued
from stages.formats.format import STATED, Format, ParsedRow
from stages.formats.kto import KTO
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.readers.row import BadRow
from stages.formats.scored import Scored
from stages.formats.several import Several
from stages.formats.texts import Texts
from stages.formats.transcribed import Transcribed
from stages.formats.turns import empty
from stages.store.splits import NEED_AN_ANSWER

# In this order: a file has the first of these formats that most of its first rows are of.
EXAMPLES: list[type[Format]] = [
    KTO, Chat, Answered, Continued, ChosenRejected, Compared, Scored, Transcribed, Prompts, Texts,
]  # fmt: skip
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
SHOWN = 9  # keys, in an error
MEDIA = ("image", "video", "audio")  # a sign in a text stands for one, and says nothing without its column


@dataclass(frozen=True)
class Columns:
    """Of rows that have the same ones: the column of every role and what gets it, which roles are `stated`, and
    what stands beside."""

    paths: dict[str, Path]
    getters: Getters
    stated: list[str]
    beside: Beside


class Placeholders:
    """The placeholders of columns that the user dropped (`columns: {image: null}`), taken out of requests: `<image>`,
    `<|image|>`, `<image 1>`. `rows` counts the rows that had some."""

    def __init__(self, dropped: Collection[str]):
        self.kinds = sorted({name for column in dropped if (name := normal(column).removesuffix("s")) in MEDIA})
        self.sign = re.compile(rf"<\|?({'|'.join(self.kinds)})[ _]?\d*\|?>") if self.kinds else None
        self.rows = 0

    def taken_out(self, said: ParsedRow) -> ParsedRow:
        """Return a row without these placeholders. Raises BadRow where a turn was nothing else."""
        sign = self.sign
        if sign is None or not any(sign.search(turn["content"]) for turn in said.messages):
            return said
        self.rows += 1

        def cleaned(text: str, role: str) -> str:
            if role == "answer" or not sign.search(text):
                return text
            if not (rest := sign.sub("", text).strip()):
                raise BadRow("", f"a turn is {text.strip():.40}, and nothing else: its column is left out")
            return rest

        return said.rewritten(cleaned)

    def remarks(self) -> list[str]:
        """Return what a user should know of this."""
        signs = " and ".join(f"<{kind}>" for kind in self.kinds)
        return [f"{self.rows:,} rows had {signs} in their text: taken out, as its column is"] if self.rows else []


@dataclass
class ColumnMapping:
    """A file's format, and the column of every role in it."""

    format: Format
    first: dict[str, Path]  # of the roles that the first rows have
    given: Mapping[str, Path | None]
    asks: bool = False  # only for what was asked
    known: dict[tuple[str, ...], Columns] = field(default_factory=dict)
    unfound: set[tuple[str, str]] = field(default_factory=set)  # roles with paths that lead into no row so far
    placeholders: Placeholders = field(init=False)

    def __post_init__(self) -> None:
        self.placeholders = Placeholders(self.format.dropped)

    def columns(self, row: dict[str, Any]) -> Columns:
        """The columns of a row: those of the first rows, and others that only some rows have."""
        if (found := self.known.get(tuple(row))) is None:
            known = dict.fromkeys([column for path in self.first.values() for column in tops(path)])
            named = {**self.format.named(row), **STATED}
            more = {role: names for role, names in named.items() if role not in self.first}
            paths = self.first | resolved(row, more, {**self.given, **known})
            decided = {name for role in self.given for name in self.format.roles.get(role, "").split()}
            form, texts = self.format, isinstance(self.format, Texts)
            texts &= "text" not in self.given  # of which somebody says that it is running text
            judged = form.compares or isinstance(form, KTO)
            beside = Beside.of(row, paths, form.dropped, decided, texts, form.weighed, judged)
            found = self.known[tuple(row)] = Columns(paths, getters_of(paths, row), [*STATED.keys() & paths], beside)
        return found

    def read(self, row: Any) -> tuple[ParsedRow, list[str]]:
        """What a row says, and those of its columns that are not read.

        Raises:
            BadRow: where it cannot be used.
            ChangesMeaning: for a column that would change that and is not read.
        """
        if not isinstance(row, dict):
            raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
        if self.unfound:
            self.unfound = {(role, path) for role, path in self.unfound if not has(row, path)}
        columns = self.columns(row)
        values = values_of(row, columns.getters)
        stated: dict[str, Any] = {role: in_words(values.pop(role)) for role in columns.stated if role in values}
        said = self.placeholders.taken_out(self.said(row, values, columns.paths))
        return (said._replace(**stated) if stated else said), unread(row, values, columns.beside)

    def said(self, row: dict[str, Any], values: dict[str, Any], paths: Mapping[str, Path]) -> ParsedRow:
        """As `read`, by the values of a row's roles."""
        for role in self.format.needs:
            if role not in values:
                column = str(self.first.get(role, role))
                raise BadRow(column, "is empty" if column in row else "the column is missing")
        try:
            return ParsedRow(self.format.request(values), []) if self.asks else self.format.said(values)
        except BadRow as bad:
            if not isinstance(path := paths.get(bad.field), str):
                raise
            raise BadRow(path, bad.reason.replace("COLUMN", path) + within(bad.field, path, at(row, path))) from None
        except ChangesMeaning as error:
            role, dot, key = error.column.partition(".")
            raise ChangesMeaning(f"{paths[role]}{dot}{key}", error.reason) from None

    def told(self) -> str:
        """`{prompt: instruction, completion: output}`: what `columns` would say."""
        asked = ("system", "history", "messages", "prompt", "input")
        roles = sorted(self.first, key=lambda role: role not in asked)
        paths = {role: path if isinstance(path := self.first[role], str) else f"[{', '.join(path)}]" for role in roles}
        return f"{{{', '.join(f'{role}: {path}' for role, path in paths.items())}}}"


def wanted_of(source: Source) -> Wanted:
    """Answers where a split that rows fall into learns from them, or a check compares with them; else prompts."""
    answered = source.check or any(source.shares.get(split) for split in NEED_AN_ANSWER)
    return Wanted.answers if answered else Wanted.prompts


def kinds(source: Source, wanted: Wanted) -> list[type[Format]]:
    """The formats that a source may have."""
    if source.task:
        return [Phrased]
    return [kind for kind in FORMATS[wanted] if source.format in (None, name_of(kind))]


def name_of(kind: type[Format]) -> str:
    """The word by which `format` of a source names a format."""
    return kind.__module__.rpartition(".")[2]


def laid_out(format: Format, columns: list[str], given: Mapping[str, Path | None]) -> ColumnMapping:
    return ColumnMapping(format, resolved(columns, {**format.named(columns), **STATED}, given), given)


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


def within(role: str, path: str, value: Any) -> str:
    """How a role is given what stands inside of an object."""
    keys = inside(value) if isinstance(value, dict) else []
    return f"; `columns: {{{role}: {path}.KEY}}` reads one of {', '.join(keys[:SHOWN])} in it" if keys else ""
