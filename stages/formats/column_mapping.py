"""Map the columns of a file to the roles of its format (prompt, completion, …), and parse its rows by this mapping."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from operator import itemgetter
from typing import Any

from stages.config.blocks.data import Source
from stages.formats import columns as column_paths
from stages.formats.answered import Answered, Continued
from stages.formats.chat import Chat, Transcribed
from stages.formats.chosen_rejected import ChosenRejected, Rejected
from stages.formats.columns import (
    TURN_ROLES,
    Path,
    UnreadColumns,
    has_path,
    list_unread,
    nested_keys,
    path_parts,
    value_at,
)
from stages.formats.compared import Compared
from stages.formats.format import STATED, Format, ParsedRow, is_turns
from stages.formats.implicit import Implicit
from stages.formats.labelled import Labelled
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.readers.row import BadRow, ChangesMeaning, Way
from stages.formats.references import Resolved, resolve
from stages.formats.scored import Scored, Several
from stages.formats.texts import Texts
from stages.formats.turns import (
    CHANGING,
    MEDIA_OF_PARTS,
    READ_PARTS,
    WEIGHTS,
    has_role,
    is_empty,
    is_turn,
    kind_of,
    messages,
    resolve_turns,
)
from stages.store.splits import NEED_AN_ANSWER

# Detection takes the first format in this order that fits at least half of the file's first rows.
EXAMPLES: list[type[Format]] = [
    Labelled, Chat, Answered, Continued, ChosenRejected, Compared, Scored, Transcribed, Prompts, Texts,
]  # fmt: skip
PREFERENCES: list[type[Format]] = [ChosenRejected, Rejected, Compared, Scored, Labelled, Implicit]
CANDIDATES: list[type[Format]] = [Several, Chat, Answered]


class Purpose(StrEnum):
    """The use of a source. The text of each says what the columns of the source must hold."""

    answers = "messages, a prompt with its completion, or text"
    prompts = "messages or a prompt"
    preferences = "a chosen and a rejected answer, two and a preference, several with scores, or one labelled good or bad"
    candidates = "messages or a prompt, with one or several completions"


FORMATS = dict(zip(Purpose, (EXAMPLES, EXAMPLES, PREFERENCES, CANDIDATES), strict=True))
# a placeholder such as <image> means nothing without the column of this name
MEDIA = ("image", "video", "audio")
# (role, function that takes its value out of a row)
Getters = list[tuple[str, Callable[[dict[str, Any]], Any]]]
MAX_SHOWN = 9  # names in an error
MOST_STEPS = 4  # of a path inside a column that an error offers


@dataclass(frozen=True)
class RowColumns:
    """The columns of all rows with the same keys: `paths` and `getters` by role, the roles that state the row's
    licence, origin, group or model (`stated`), and the columns that no role reads."""

    paths: dict[str, Path]
    getters: Getters
    stated: list[str]
    unread: UnreadColumns

    def values(self, row: dict[str, Any], columns: Collection[str]) -> Resolved:
        """Return the values of a row by role, without empty values, with what they refer to in place of references.
        `columns`: of the file."""
        values = read_values(self.getters, row)
        meant = resolve(row, values, self.paths, columns)
        return meant._replace(values=values | meant.values)


class Placeholders:
    """The placeholders (`<image>`, `<|image|>`, `<image 1>`) and the parts of a content that the user leaves out by
    `columns: {image: null}`. `rows` counts the rows with such placeholders in a request, `rows_with_parts` those with
    such parts."""

    def __init__(self, dropped: Collection[str]):
        self.dropped = {*dropped}
        self.rows_with_parts = 0
        names = {column_paths.normal_name(column).removesuffix("s") for column in dropped}
        self.media = names & {*MEDIA_OF_PARTS.values()}
        self.kinds = sorted(names & {*MEDIA})
        self.pattern = (
            re.compile(rf"<\|?({'|'.join(self.kinds)})[ _]?\d*\|?>") if self.kinds else None
        )
        self.rows = 0

    def remove(self, row: ParsedRow) -> ParsedRow:
        """Return the row without placeholders in its requests; raise BadRow if a turn consists of one alone."""
        pattern = self.pattern
        if pattern is None or not any(pattern.search(turn["content"]) for turn in row.messages):
            return row
        self.rows += 1

        def cleaned(text: str, role: str) -> str:
            if role == "answer" or not pattern.search(text):
                return text
            if not (remaining := pattern.sub("", text).strip()):
                raise BadRow("", f"a turn has only {text.strip():.40}, whose column is left out")
            return remaining

        return row.rewrite_texts(cleaned)

    def remove_parts(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a row's values by role without the parts that are left out."""
        if not self.dropped:
            return values
        remaining = {role: self.without_parts(value) for role, value in values.items()}
        self.rows_with_parts += remaining != values
        return remaining

    def without_parts(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.without_parts(item) for item in value if not self.is_left_out(item)]
        if isinstance(value, dict):
            return {key: self.without_parts(item) for key, item in value.items()}
        return value

    def is_left_out(self, part: Any) -> bool:
        """Return True for a part whose type, or whose medium, the user leaves out."""
        kind = kind_of(part)
        if kind in READ_PARTS:
            return False
        return kind in self.dropped or MEDIA_OF_PARTS.get(str(kind)) in self.media

    def remarks(self) -> list[str]:
        """Return the notes for the user on removed placeholders and parts; [] if there were none."""
        notes = list[str]()
        if self.rows:
            names = " and ".join(f"<{kind}>" for kind in self.kinds)
            notes.append(
                f"{self.rows:,} rows had {names} in the text; it was removed, since its column is left out"
            )
        if self.rows_with_parts:
            names = ", ".join(sorted(self.dropped))
            notes.append(f"{self.rows_with_parts:,} rows had parts that are left out ({names})")
        return notes


@dataclass
class ColumnMapping:
    """The format of a file, and the column of each role in it."""

    format: Format
    first_paths: dict[str, Path]  # the paths of the roles in the first rows
    user_columns: Mapping[str, Path | None]  # the setting `columns` of the source
    placeholders: Placeholders
    columns: set[str]  # of the first rows, and of all rows so far
    prompts_only: bool = False  # the answers are not parsed
    columns_by_keys: dict[tuple[str, ...], RowColumns] = field(default_factory=dict)
    # the columns that no role reads, of the rows so far
    unread_columns: dict[str, None] = field(default_factory=dict)
    # those of the last row that hold a value
    unread_in_row: list[str] = field(default_factory=list)
    # (role, path) of the user's, in no row so far
    missing_paths: set[tuple[str, str]] = field(default_factory=set)

    def find_columns(self, row: dict[str, Any]) -> RowColumns:
        """Return the columns of a row: those of the first rows, and roles in columns that only some rows have."""
        if (columns := self.columns_by_keys.get(tuple(row))) is None:
            form, users = self.format, self.user_columns
            names = column_names(form, row)
            paths = column_paths.resolve_columns(row, names, {**users, **self.first_paths})
            getters, unread = role_getters(paths, row), unread_columns(row, paths, form, users)
            columns = RowColumns(paths, getters, [*STATED.keys() & paths], unread)
            self.columns_by_keys[tuple(row)] = columns
            self.columns |= row.keys()
        return columns

    def values(self, row: dict[str, Any]) -> Resolved:
        """Return the values of a row by role, as `RowColumns.values`."""
        return self.find_columns(row).values(row, self.columns)

    def read(self, row: Any) -> ParsedRow:
        """Return the parsed row, and note its columns that are not read.
        Raise BadRow if the row cannot be used. ChangesMeaning: for an unread column that changes its meaning."""
        if not isinstance(row, dict):
            raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
        if self.missing_paths:
            self.missing_paths = {
                (role, path) for role, path in self.missing_paths if not has_path(row, path)
            }
        columns = self.find_columns(row)
        values, referred, error = columns.values(row, self.columns)
        if error:
            raise BadRow("", error)
        model = values.pop("model", None)
        stated: dict[str, Any] = {
            role: join_values(values.pop(role)) for role in columns.stated if role in values
        }
        values = self.placeholders.remove_parts(values)
        parsed = self.placeholders.remove(self.parse(row, values, columns.paths))
        if model is not None:
            stated["models"] = models_by_answer(model, len(parsed.answers), columns.paths)
        others = {**row, **dict.fromkeys(referred)} if referred else row
        self.unread_in_row = list_unread(others, columns.unread)
        self.unread_columns |= dict.fromkeys(self.unread_in_row)
        return parsed._replace(**stated) if stated else parsed

    def parse(
        self, row: dict[str, Any], values: dict[str, Any], paths: Mapping[str, Path]
    ) -> ParsedRow:
        """Return the row parsed from its values by role; raise errors that name columns in place of roles."""
        for role in self.format.needs:
            if role not in values:
                column = str(self.first_paths.get(role, role))
                raise BadRow(column, "is empty" if column in row else "the column is missing")
        try:
            return (
                ParsedRow(messages(self.format.read_prompt(values)), [])
                if self.prompts_only
                else self.format.parse(values)
            )
        except BadRow as bad:
            if not isinstance(path := paths.get(bad.field), str):
                raise
            nested = nested_key_ways(bad.field, path, value_at(row, path))
            raise BadRow(path, bad.reason, *bad.at(path).ways, *nested) from None
        except ChangesMeaning as error:
            role, dot, key = error.column.partition(".")
            raise ChangesMeaning(f"{paths[role]}{dot}{key}", error.reason) from None

    def unread(self) -> list[str]:
        """Return the columns that nothing read in the rows so far, and such keys of turns as `messages.key`."""
        keys = (name.split(".", 1) for name in self.format.turns.unread_keys)
        turn_keys = [f"{self.first_paths.get(role, role)}.{key}" for role, key in keys]
        return [*self.unread_columns, *turn_keys]

    def describe(self) -> str:
        """Return the mapping as `columns` would have it: `{prompt: instruction, completion: output}`."""
        prompt_roles = ("system", "history", "messages", "prompt", "input")
        paths = sorted(self.first_paths.items(), key=lambda item: item[0] not in prompt_roles)
        texts = [
            f"{role}: {path if isinstance(path, str) else '[' + ', '.join(path) + ']'}"
            for role, path in paths
        ]
        return f"{{{', '.join(texts)}}}"


def source_purpose(source: Source) -> Purpose:
    """Return `answers` if a split of the source trains on answers, or a check compares with them; else `prompts`."""
    needs_answers = source.check or any(source.shares.get(split) for split in NEED_AN_ANSWER)
    return Purpose.answers if needs_answers else Purpose.prompts


def allowed_formats(source: Source, purpose: Purpose) -> list[type[Format]]:
    """Return the formats to try for a source."""
    if source.task:
        return [Phrased]
    return [kind for kind in FORMATS[purpose] if source.format in (None, format_name(kind))]


def format_name(kind: type[Format]) -> str:
    """Return the name of a format in the setting `format`."""
    return kind.__module__.rpartition(".")[2]


# roles that hold answers
ANSWERS = ("completion", "completions", "chosen", "rejected", "a", "b")
JUDGED = {*column_paths.NAMES["judged"].split()}
# roles of which `[]` and `{}` may be the words: the answer to a request
TEXTUAL = ("input", "completion")


def column_names(form: Format, columns: Collection[str]) -> dict[str, str]:
    """Return the column names that are tried for each role of a format, and for the roles of every format."""
    names = {**form.role_names(columns), **STATED, "model": form.models}
    # beside judgements, `model_name` is the judge
    if not form.compares and JUDGED.isdisjoint(map(column_paths.normal_name, columns)):
        names["model"] += " model_name"
    return names


def models_by_answer(
    model: Any, answers: int, paths: Mapping[str, Path]
) -> list[str | None] | None:
    """Return the model of each answer, from one model, a list, or the models by column; None if their numbers differ."""
    models = column_paths.parse_cell(model)
    if isinstance(models, dict):
        answer_paths = [
            part for role in ANSWERS if role in paths for part in path_parts(paths[role])
        ]
        models = [models.get(path.partition(".")[0]) for path in answer_paths]
    models = models if isinstance(models, list) else [models] * answers
    return [each and join_values(each) for each in models] if len(models) == answers else None


def build_mapping(
    format: Format, columns: list[str], user_columns: Mapping[str, Path | None]
) -> ColumnMapping:
    names = column_names(format, columns)
    paths = column_paths.resolve_columns(columns, names, user_columns)
    return ColumnMapping(format, paths, user_columns, Placeholders(format.dropped), {*columns})


def role_getters(paths: Mapping[str, Path], columns: Iterable[str]) -> Getters:
    """Return, for each role, the function that takes its value out of a row with these columns."""
    keys = [*columns]
    return [
        (role, itemgetter(path) if path in keys else partial(value_at, path=path))
        for role, path in paths.items()
    ]


def read_values(getters: Getters, row: dict[str, Any]) -> dict[str, Any]:
    values = dict[str, Any]()
    for role, get in getters:
        value = get(row)
        # a text without a brace is no list of turns
        if role in TURN_ROLES and (not isinstance(value, str) or "{" in value):
            value = resolve_turns(value)
        if not is_empty(value) or (role in TEXTUAL and str(value or "").strip()):
            values[role] = value
    return values


def unread_columns(
    columns: Collection[str],
    paths: Mapping[str, Path],
    form: Format,
    user_columns: Mapping[str, Path | None],
) -> UnreadColumns:
    """Sort out the columns that `paths` do not read; columns that the user leaves out count as read."""
    read = column_paths.used_columns(paths.values())
    # Names of roles that the user maps: a column of such a name changes nothing.
    decided_names = {name for role in user_columns for name in form.roles.get(role, "").split()}
    # the user may name any column as running text
    texts = isinstance(form, Texts) and "text" not in user_columns
    reads_bad_answers = form.compares or isinstance(form, Labelled)
    changing, bad = dict[str, bool](), dict[str, Collection[str]]()
    for column in columns:
        if column in read or column in form.dropped:
            continue
        name = column_paths.normal_name(column)
        changes = (
            name in CHANGING | WEIGHTS
            or column_paths.CHOICE.fullmatch(name)
            or ("reasoning" not in paths and column_paths.THOUGHTS.fullmatch(name))
            or (texts and not column_paths.TEXT_METADATA & {*name.split("_")})
        )
        changing[column] = bool(changes) and name not in decided_names
        if name in column_paths.BAD and not reads_bad_answers:
            bad[column] = column_paths.BAD[name]
    return UnreadColumns(changing, bad)


def join_values(value: Any) -> str:
    """Return a licence, an origin or a group as text; several are joined by commas."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()
    return text.encode(errors="replace").decode()  # a file may hold half a surrogate pair


def nested_key_ways(role: str, path: str, value: Any) -> list[Way]:
    """Return the way to read a role from the longest text, or the turns, in an object; [] if the value is not an object
    that has them."""
    if not isinstance(value, dict):
        return []
    paths = [inside for inside in paths_inside(value) if is_readable(value_at(value, inside))]
    if not paths:
        return []
    longest = max(paths, key=lambda inside: len(str(value_at(value, inside))))
    keys = ", ".join(nested_keys(value)[:MAX_SHOWN])
    return [Way({"columns": {role: f"{path}.{longest}"}}, f"(its keys are {keys})")]


def is_readable(value: Any) -> bool:
    """Return True for a text, a turn, or turns."""
    return (
        isinstance(value, str) or has_role(value) or (is_turns(value) and any(map(is_turn, value)))
    )


def paths_inside(value: Any) -> list[str]:
    """Return the paths of the keys in an object, also of those in objects inside and in the first items of lists."""
    waiting = [str(key) for key in value]
    for path in waiting:  # which grows
        inner = value_at(value, path)
        if path.count(".") >= MOST_STEPS or is_readable(inner):
            continue
        if isinstance(inner, dict):
            waiting += [f"{path}.{key}" for key in inner]
        elif isinstance(inner, list) and inner:
            waiting.append(f"{path}.0")
    return waiting
