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
from stages.formats.columns import (
    ChangesMeaning,
    Path,
    UnreadColumns,
    has_path,
    list_unread,
    nested_keys,
    normal_name,
    resolve_columns,
    top_columns,
    value_at,
)
from stages.formats.compared import Compared
from stages.formats.continued import Continued
from stages.formats.format import PROVENANCE, Format, ParsedRow
from stages.formats.kto import KTO
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.readers.row import BadRow
from stages.formats.scored import Scored
from stages.formats.several import Several
from stages.formats.texts import Texts
from stages.formats.transcribed import Transcribed
from stages.formats.turns import is_empty
from stages.store.splits import NEED_AN_ANSWER

# In this order: a file has the first of these formats that most of its first rows are of.
EXAMPLES: list[type[Format]] = [
    KTO, Chat, Answered, Continued, ChosenRejected, Compared, Scored, Transcribed, Prompts, Texts,
]  # fmt: skip
PREFERENCES: list[type[Format]] = [ChosenRejected, Compared, Scored, KTO]
CANDIDATES: list[type[Format]] = [Several, Chat, Answered]


class Purpose(StrEnum):
    """What a source is read for."""

    answers = "messages, a prompt with its completion, or text"
    prompts = "messages or a prompt"
    preferences = "a chosen and a rejected answer, two and a preference, several with scores, or one and a flag"
    candidates = "messages or a prompt, with completions or a completion"


FORMATS = {
    Purpose.answers: EXAMPLES,
    Purpose.prompts: EXAMPLES,
    Purpose.preferences: PREFERENCES,
    Purpose.candidates: CANDIDATES,
}
Getters = list[tuple[str, Callable[[dict[str, Any]], Any]]]  # a role, and what gets its value from a row
MAX_SHOWN = 9  # keys, in an error
MEDIA = ("image", "video", "audio")  # a sign in a text stands for one, and says nothing without its column


@dataclass(frozen=True)
class RowColumns:
    """Of rows that have the same ones: the column of every role and what gets it, which roles are `stated`, and
    what stands beside."""

    paths: dict[str, Path]
    getters: Getters
    provenance: list[str]
    unread: UnreadColumns


class Placeholders:
    """The placeholders of columns that the user dropped (`columns: {image: null}`), taken out of requests: `<image>`,
    `<|image|>`, `<image 1>`. `rows` counts the rows that had some."""

    def __init__(self, dropped: Collection[str]):
        self.kinds = sorted({name for column in dropped if (name := normal_name(column).removesuffix("s")) in MEDIA})
        self.pattern = re.compile(rf"<\|?({'|'.join(self.kinds)})[ _]?\d*\|?>") if self.kinds else None
        self.rows = 0

    def remove(self, row: ParsedRow) -> ParsedRow:
        """Return a row without these placeholders. Raises BadRow where a turn was nothing else."""
        pattern = self.pattern
        if pattern is None or not any(pattern.search(turn["content"]) for turn in row.messages):
            return row
        self.rows += 1

        def cleaned(text: str, role: str) -> str:
            if role == "answer" or not pattern.search(text):
                return text
            if not (remaining := pattern.sub("", text).strip()):
                raise BadRow("", f"a turn is {text.strip():.40}, and nothing else: its column is left out")
            return remaining

        return row.rewrite_texts(cleaned)

    def remarks(self) -> list[str]:
        """Return what a user should know of this."""
        signs = " and ".join(f"<{kind}>" for kind in self.kinds)
        return [f"{self.rows:,} rows had {signs} in their text: taken out, as its column is"] if self.rows else []


@dataclass
class ColumnMapping:
    """A file's format, and the column of every role in it."""

    format: Format
    first_paths: dict[str, Path]  # of the roles that the first rows have
    user_columns: Mapping[str, Path | None]
    prompts_only: bool = False  # only for what was asked
    columns_by_keys: dict[tuple[str, ...], RowColumns] = field(default_factory=dict)
    missing_paths: set[tuple[str, str]] = field(default_factory=set)  # roles with paths that lead into no row so far
    placeholders: Placeholders = field(init=False)

    def __post_init__(self) -> None:
        self.placeholders = Placeholders(self.format.dropped)

    def find_columns(self, row: dict[str, Any]) -> RowColumns:
        """The columns of a row: those of the first rows, and others that only some rows have."""
        if (columns := self.columns_by_keys.get(tuple(row))) is None:
            read_columns = dict.fromkeys(
                [column for path in self.first_paths.values() for column in top_columns(path)]
            )
            names_by_role = {**self.format.role_names(row), **PROVENANCE}
            other_roles = {role: names for role, names in names_by_role.items() if role not in self.first_paths}
            paths = self.first_paths | resolve_columns(row, other_roles, {**self.user_columns, **read_columns})
            decided_names = {name for role in self.user_columns for name in self.format.roles.get(role, "").split()}
            form, texts = self.format, isinstance(self.format, Texts)
            texts &= "text" not in self.user_columns  # of which somebody says that it is running text
            judged = form.compares or isinstance(form, KTO)
            unread = UnreadColumns.build(row, paths, form.dropped, decided_names, texts, form.weighted_roles, judged)
            columns = self.columns_by_keys[tuple(row)] = RowColumns(
                paths, role_getters(paths, row), [*PROVENANCE.keys() & paths], unread
            )
        return columns

    def read(self, row: Any) -> tuple[ParsedRow, list[str]]:
        """What a row says, and those of its columns that are not read.

        Raises:
            BadRow: where it cannot be used.
            ChangesMeaning: for a column that would change that and is not read.
        """
        if not isinstance(row, dict):
            raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
        if self.missing_paths:
            self.missing_paths = {(role, path) for role, path in self.missing_paths if not has_path(row, path)}
        columns = self.find_columns(row)
        values = role_values(row, columns.getters)
        provenance: dict[str, Any] = {
            role: join_values(values.pop(role)) for role in columns.provenance if role in values
        }
        parsed = self.placeholders.remove(self.parse(row, values, columns.paths))
        return (parsed._replace(**provenance) if provenance else parsed), list_unread(row, values, columns.unread)

    def parse(self, row: dict[str, Any], values: dict[str, Any], paths: Mapping[str, Path]) -> ParsedRow:
        """As `read`, by the values of a row's roles."""
        for role in self.format.needs:
            if role not in values:
                column = str(self.first_paths.get(role, role))
                raise BadRow(column, "is empty" if column in row else "the column is missing")
        try:
            return ParsedRow(self.format.read_prompt(values), []) if self.prompts_only else self.format.parse(values)
        except BadRow as bad:
            if not isinstance(path := paths.get(bad.field), str):
                raise
            raise BadRow(
                path, bad.reason.replace("COLUMN", path) + nested_key_hint(bad.field, path, value_at(row, path))
            ) from None
        except ChangesMeaning as error:
            role, dot, key = error.column.partition(".")
            raise ChangesMeaning(f"{paths[role]}{dot}{key}", error.reason) from None

    def describe(self) -> str:
        """`{prompt: instruction, completion: output}`: what `columns` would say."""
        prompt_roles = ("system", "history", "messages", "prompt", "input")
        roles = sorted(self.first_paths, key=lambda role: role not in prompt_roles)
        paths = {
            role: path if isinstance(path := self.first_paths[role], str) else f"[{', '.join(path)}]" for role in roles
        }
        return f"{{{', '.join(f'{role}: {path}' for role, path in paths.items())}}}"


def source_purpose(source: Source) -> Purpose:
    """Answers where a split that rows fall into learns from them, or a check compares with them; else prompts."""
    needs_answers = source.check or any(source.shares.get(split) for split in NEED_AN_ANSWER)
    return Purpose.answers if needs_answers else Purpose.prompts


def allowed_formats(source: Source, purpose: Purpose) -> list[type[Format]]:
    """The formats that a source may have."""
    if source.task:
        return [Phrased]
    return [kind for kind in FORMATS[purpose] if source.format in (None, format_name(kind))]


def format_name(kind: type[Format]) -> str:
    """The word by which `format` of a source names a format."""
    return kind.__module__.rpartition(".")[2]


def build_mapping(format: Format, columns: list[str], user_columns: Mapping[str, Path | None]) -> ColumnMapping:
    return ColumnMapping(
        format, resolve_columns(columns, {**format.role_names(columns), **PROVENANCE}, user_columns), user_columns
    )


def role_getters(paths: Mapping[str, Path], columns: Iterable[str]) -> Getters:
    """What gets the value of every role from a row that has these columns."""
    whole_columns = [*columns]
    return [
        (role, itemgetter(path) if path in whole_columns else partial(value_at, path=path))
        for role, path in paths.items()
    ]


def role_values(row: dict[str, Any], getters: Getters) -> dict[str, Any]:
    """What a row says by role, where it says something."""
    return {role: value for role, get in getters if not is_empty(value := get(row))}


def join_values(value: Any) -> str:
    """A licence or an origin, of which a row may have several."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def nested_key_hint(role: str, path: str, value: Any) -> str:
    """How a role is given what stands inside of an object."""
    keys = nested_keys(value) if isinstance(value, dict) else []
    return f"; `columns: {{{role}: {path}.KEY}}` reads one of {', '.join(keys[:MAX_SHOWN])} in it" if keys else ""
