"""Errors for a file that matches no format, or that may be read in several ways. Each names the setting that helps."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, suggest
from stages.config.installation import read_beside
from stages.formats import columns as column_paths
from stages.formats.column_mapping import (
    MAX_SHOWN,
    ColumnMapping,
    Purpose,
    allowed_formats,
    build_mapping,
)
from stages.formats.columns import has_path, label_word, nested_keys, normal_name, value_at
from stages.formats.format import STATED, is_whole
from stages.formats.kto import KTO
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.texts import Texts
from stages.formats.turns import role_of
from stages.store import plugins

TEXTS = read_beside(__file__)
# Values of `columns` for each kind of training example, and for each kind of preference.
ANSWERED, PREFERRED = TEXTS["answered"], TEXTS["preferred"]
OPTIONS_TASK = "multiple_choice"
JUDGING = set(TEXTS["judging"].split())
NAMED_OPTION = re.compile(r"[A-Ea-e]|\d+")  # an answer that names its option
# Columns that may all be the role, if their texts differ. A `prompt` beside them is the rendered request.
RIVALS = {role: names.split() for role, names in TEXTS["rivals"].items()}


@dataclass(frozen=True)
class FileHead:
    """The first rows of a file, its name, and `block`: the config key of the source that the file belongs to.
    `columns` are those that are not empty in at least one of these rows."""

    name: str
    source: Source
    block: str
    columns: list[str]
    rows: list[dict[str, Any]]
    purpose: Purpose


def unknown_format_error(head: FileHead) -> UserError:
    """Return the error for a file in no known format, naming the setting that maps its columns."""
    source, block, columns = head.source, head.block, head.columns
    problem = f"{head.name}: no known columns among {shortlist(columns)}"
    kinds = allowed_formats(source, head.purpose)
    roles = {role for kind in kinds for role in kind(source).roles} | {*STATED}
    for role, path in source.columns.items():
        if path is not None and role not in roles:
            return UserError(f"{block}.columns: {role!r} is not a role.{suggest(role, roles)}")
    missing = {
        (role, path)
        for role, path in user_paths(source)
        if not any(has_path(row, path) for row in head.rows)
    }
    if missing:
        return missing_path_error(missing, block, head.name, head.rows)
    if source.task:
        needed = "; ".join(f"{role} ({names})" for role, names in Phrased(source).roles.items())
        return UserError(
            TEXTS["no_task_roles"].format(
                problem=problem, task=source.task, needed=needed, block=block
            )
        )
    if error := unclear_labels_error(head):
        return error
    is_labelled = head.purpose not in (Purpose.preferences, Purpose.candidates)
    if tasks := [
        task
        for task in plugins.label_task_names()
        if is_labelled and fits_task(task, source, columns)
    ]:
        return UserError(
            TEXTS["labelled_set"].format(problem=problem, block=block, tasks=", ".join(tasks))
        )
    ways = {Purpose.preferences: PREFERRED, Purpose.answers: ANSWERED}.get(
        head.purpose, ANSWERED[:1]
    )
    settings = f"{block}.columns={ways[0]}" + "".join(f" or {way}" for way in ways[1:])
    message = f"{problem}. The file needs {head.purpose}. Type {settings}, with your columns' names for COLUMN."
    return UserError(f"{message}{nested_paths_hint(head.rows)}")


def unclear_labels_error(head: FileHead) -> UserError | None:
    """Return the error for single answers with labels that may mean good or bad; None for any other file."""
    roles = build_mapping(KTO(head.source), head.columns, head.source.columns).first_paths
    if "label" not in roles or not (
        "messages" in roles or {"prompt", "completion"} <= roles.keys()
    ):
        return None
    values = sorted({label_word(value_at(row, roles["label"])) for row in head.rows} - {""})
    if not values or len(values) > MAX_SHOWN:
        return None
    words = {"column": roles["label"], "values": ", ".join(values), "words": label_setting(values)}
    return UserError(TEXTS["unclear_labels"].format(name=head.name, block=head.block, **words))


def refuse_judged(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for training examples with scores that nothing reads, since bad answers would be trained on."""
    form, block = mapping.format, head.block
    if head.source.task or not block.startswith(("data.sources", "data.file")):
        return
    if form.compares or isinstance(form, KTO | Prompts | Texts):
        return
    read = {
        top for path in mapping.first_paths.values() for top in column_paths.top_columns(path)
    } | form.dropped
    for column in head.columns:
        for path in [] if column in read else score_paths(column, head.rows):
            values = sorted({label_word(value_at(row, path)) for row in head.rows} - {"", "nan"})
            if len(values) > 1:
                words = {
                    "column": column,
                    "path": path,
                    "values": shortlist(values),
                    "words": label_setting(values),
                }
                raise UserError(TEXTS["judged"].format(name=head.name, block=block, **words))


def label_setting(values: list[str]) -> str:
    """Return the value of the setting `labels` that gives each value of a column a word."""
    words = (
        "VALUE: WORD, …"
        if len(values) > MAX_SHOWN
        else ", ".join(f"{value}: WORD" for value in values)
    )
    return f"{{{words}}}"


def score_paths(column: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the paths that score answers in a column: the column itself, or keys inside of it."""
    keys = dict.fromkeys(key for row in rows for key in nested_keys(row.get(column)))
    if not keys:
        return [column] if normal_name(column) in JUDGING else []
    return [f"{column}.{key}" for key in keys if {normal_name(column), normal_name(key)} & JUDGING]


def nested_paths_hint(rows: list[dict[str, Any]]) -> str:
    """Return a sentence with the paths of keys inside columns; empty if no column has keys."""
    nested = dict.fromkeys(
        f"{column}.{key}" for row in rows for column in row for key in nested_keys(row[column])
    )
    return f" A COLUMN may also be a key inside a column: {shortlist([*nested])}." if nested else ""


def user_paths(source: Source) -> set[tuple[str, str]]:
    """Return (role, path) of every role that the setting `columns` reads."""
    columns = source.columns.items()
    return {(role, path) for role, value in columns for path in column_paths.path_parts(value)}


def missing_path_error(
    missing: Collection[tuple[str, str]], block: str, where: str, rows: list[dict[str, Any]]
) -> UserError:
    """Return the error for a path of the setting `columns` that is in no row, with the names at the place where the
    path ends."""
    role, path = min(missing)
    problem = f"{block}.columns={{{role}: {path}}}: {where} has no"
    parent, _, step = path.rpartition(".")
    while parent and not any(has_path(row, parent) for row in rows):
        parent, _, step = parent.rpartition(".")
    if not parent:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return UserError(f"{problem} such column. Type one of its columns: {shortlist(columns)}.")
    keys = dict.fromkeys(key for row in rows for key in nested_keys(value_at(row, parent)))
    hint = suggest(step, keys) if keys else f" {parent} has no keys: type {{{role}: {parent}}}."
    return UserError(f"{problem} {step!r} in {parent}.{hint}")


def shortlist(names: list[str], most: int = MAX_SHOWN) -> str:
    """Return the first names in a line, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def refuse_unanswered(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for a file without exactly one answer to each request, where training or a check needs one."""
    block, source = head.block, head.source
    # Other blocks are sets of the evaluation: they have no splits, and nothing is trained on their pairs.
    trained = block.startswith(("data.sources", "data.file"))
    prompts_alone = [f"{block}.splits={{preference: 1.0}} to read the prompts alone"] * trained
    if isinstance(mapping.format, Prompts):
        tasks = [
            t
            for t in plugins.label_task_names()
            if t != OPTIONS_TASK and fits_task(t, Source(), head.columns)
        ]
        ways = [f"{block}.columns={{completion: COLUMN}} to name the answers"]
        if any(has_answer(mapping.values(row).values.get("messages")) for row in head.rows):
            ways = ["data.form.turns=cut to end conversations at their last answer", *ways]
        ways += [
            f"{block}.task={task} to write the rows as instructions" for task in tasks[:1]
        ] + prompts_alone
        words = {"columns": ", ".join(head.columns), "ways": ", or ".join(ways)}
        raise UserError(
            TEXTS["unanswered"].format(name=head.name, mapping=mapping.describe(), **words)
        )
    if mapping.format.compares:
        subset = f" label.subset={source.subset}" if source.subset else ""
        ways = [
            f"label=dataset label.path={source.path}{subset} to train on the preferences"
        ] * trained
        chosen, several = (mapping.first_paths.get(role) for role in ("chosen", "completions"))
        role = "messages" if chosen and is_whole(value_at(head.rows[0], chosen)) else "completion"
        columns = (
            f"{role}: {chosen}, rejected: null"
            if chosen
            else f"completion: {several or 'COLUMN'}.0"
        )
        ways += [f"{block}.columns={{{columns}}} to read one answer of each row"]
        problem = f"{head.name}: {mapping.describe()} are preferences, and one answer to each request is needed"
        raise UserError(f"{problem}. Type {', or '.join(ways + prompts_alone)}.")


def has_answer(turns: Any) -> bool:
    """Return True for a list with a turn of the assistant."""
    return isinstance(turns, list) and any(role_of(turn) == "assistant" for turn in turns)


def fits_task(task: str, source: Source, columns: list[str]) -> bool:
    """Return True if the columns include all that a ready-made task needs."""
    format = Phrased(replace(source, task=task))
    return {*format.needs} <= column_paths.resolve_columns(
        columns, format.roles, source.columns
    ).keys()


def refuse_options(head: FileHead) -> None:
    """Raise UserError for multiple-choice questions that are not read as such: a question needs its options."""
    source, block, columns = head.source, head.block, head.columns
    if source.task or source.format or source.columns:
        return
    roles = column_paths.resolve_columns(
        columns, Phrased(replace(source, task=OPTIONS_TASK)).roles, {}
    )
    problem = f"{head.name}: each request has options to choose from, in"
    option = str(roles.get("options"))
    if {"question", "options", "label"} <= {*roles} and any(
        isinstance(r.get(option), list | dict) for r in head.rows
    ):
        raise UserError(
            f"{problem} {option}. Type {block}.task={OPTIONS_TASK} to write them into the request."
        )
    choices = [column for column in columns if column_paths.CHOICE.fullmatch(normal_name(column))]
    if len(choices) > 1 and "label" in roles:
        label = str(roles["label"])
        texts = {str(row.get(column)).strip() for row in head.rows for column in choices}
        answers = {str(row.get(label)).strip() for row in head.rows}
        answers = {answer for answer in answers if not NAMED_OPTION.fullmatch(answer)}
        choices += [label] * (not answers <= texts)  # the right option has a column of its own
        roles_text = f"question: {roles.get('question', 'COLUMN')}, options: [{', '.join(choices)}], label: {label}"
        way = f"{block}.task={OPTIONS_TASK} {block}.columns={{{roles_text}}}"
        raise UserError(
            f"{problem} {shortlist(choices)}. Type {way} to write them into the request."
        )


def refuse_rivals(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for a file in which several columns may be the request or the answer, with different texts."""
    first, user_columns = mapping.first_paths, mapping.user_columns
    used = {*first.values()} if all(isinstance(path, str) for path in first.values()) else set()
    for role, names in RIVALS.items():
        column = first.get(role)
        if not isinstance(column, str) or role in user_columns or normal_name(column) not in names:
            continue
        for other in head.columns:
            is_free = (
                other not in used
                and user_columns.get(other, other) is not None
                and normal_name(other) in names
            )
            if is_free and any(
                texts_differ(row.get(column), row.get(other), role) for row in head.rows
            ):
                ways = " or ".join(
                    f"{head.block}.columns={{{role}: {name}}}" for name in (column, other)
                )
                raise UserError(
                    f"{head.name}: both {column} and {other} may be the {role}. Type {ways} to choose."
                )


def texts_differ(first: Any, second: Any, role: str) -> bool:
    """Return True for two different texts. A request that contains the other is the same; for an answer it is not."""
    if (
        not isinstance(first, str)
        or not isinstance(second, str)
        or not first.strip()
        or not second.strip()
    ):
        return False
    a, b = first.strip(), second.strip()
    return a != b and (role == "completion" or not (a in b or b in a))
