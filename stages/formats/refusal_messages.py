"""What a user is told of a file that is not understood, or that may be read in several ways: what there is, and the
setting that would say what it means."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, nearest
from stages.formats.chosen_rejected import is_whole
from stages.formats.column_mapping import MAX_SHOWN, ColumnMapping, Purpose, allowed_formats, build_mapping
from stages.formats.columns import (
    CHOICE,
    has_path,
    label_word,
    missing_column,
    nested_keys,
    normal_name,
    path_parts,
    resolve_columns,
    top_columns,
    value_at,
)
from stages.formats.format import CONTEXT, PROMPT, PROVENANCE
from stages.formats.kto import KTO
from stages.formats.phrased import LETTERS, Phrased
from stages.formats.prompts import Prompts
from stages.formats.readers.files import Table
from stages.formats.texts import Texts
from stages.formats.turns import is_empty
from stages.store import plugins

# What names the columns of answers, and of each kind of preference.
ANSWERED = ("{prompt: COLUMN, completion: COLUMN}", "{messages: COLUMN}", "{text: COLUMN}")
PREFERRED = (
    "{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}",
    "{prompt: COLUMN, a: COLUMN, b: COLUMN, preference: COLUMN}",
    "{prompt: COLUMN, completions: COLUMN, scores: COLUMN}",
    "{prompt: COLUMN, completion: COLUMN, label: COLUMN}",
)
OPTIONS_TASK = "multiple_choice"
# What says how good the answer of its row is, as a column or inside of one.
JUDGING = {"quality", "helpfulness", "score", "scores", "overall_score", "rating", "ratings", "reward", "rewards"}
# Several of these in a row with different texts: any may be meant. A rendering of the request is called prompt.
RIVALS = {
    "prompt": ("instruction", "question", "query", "problem"),
    "completion": ("output", "completion", "response", "answer", "solution"),
}


def unknown_format_error(
    table: Table, source: Source, block: str, columns: list[str], rows: list[dict[str, Any]], purpose: Purpose
) -> UserError:
    """That a file has no format of ours, and what would say which it has."""
    problem = f"{table.name}: no known columns among {shortlist(columns)}"
    roles = {role for kind in allowed_formats(source, purpose) for role in kind(source).roles} | {*PROVENANCE}
    for role, path in source.columns.items():
        if path is not None and role not in roles:
            return UserError(f"{block}.columns: {role!r} is no role here.{nearest(role, roles)}")
    if error := missing_column_error(source, block, table.name, columns):
        return error
    if missing := {
        (role, path) for role, path in nested_user_paths(source) if not any(has_path(row, path) for row in rows)
    }:
        return missing_key_error(missing, block, table.name, rows)
    if source.task:
        expected = "; ".join(f"{role} ({names})" for role, names in Phrased(source).roles.items())
        return UserError(
            f"{problem}. task={source.task} wants {expected}: {block}.columns={{ROLE: COLUMN}} names them."
        )
    if error := unclear_labels_error(table.name, source, block, columns, rows):
        return error
    labelled = [] if purpose in (Purpose.preferences, Purpose.candidates) else plugins.labelled()
    fitting = [task for task in labelled if fits_task(task, source, columns)]
    if fitting:
        return UserError(
            f"{problem}: this is a labelled set. {block}.task=TASK makes instructions of it, TASK being one of "
            f"{', '.join(fitting)}; {block}.columns={{prompt: COLUMN, completion: COLUMN}} takes it as it is."
        )
    problem += f"; {block}.columns={{OTHER: null}} leaves the others beside text out" * ("text" in columns)
    names = {
        name
        for kind in allowed_formats(source, purpose)
        for names in kind(source).roles.values()
        for name in names.split()
    }
    problem += "" if names & {*map(normal_name, columns)} else missing_header_hint(table.name)
    ways = PREFERRED if purpose is Purpose.preferences else ANSWERED[: 3 if purpose is Purpose.answers else 1]
    more = "".join(f", or {way}" for way in ways[1:])
    return UserError(
        f"{problem}. Wanted: {purpose}. {block}.columns={ways[0]} names them{more}{nested_paths_hint(rows)}."
    )


def unclear_labels_error(
    name: str, source: Source, block: str, columns: list[str], rows: list[dict[str, Any]]
) -> UserError | None:
    """The error for answers with a label each, of which nobody knows whether it calls its answer a good one."""
    roles = build_mapping(KTO(source), columns, source.columns).first_paths
    if "label" not in roles or not ("messages" in roles or {"prompt", "completion"} <= roles.keys()):
        return None
    values = sorted({label_word(value_at(row, roles["label"])) for row in rows} - {""})
    if not values or len(values) > MAX_SHOWN:
        return None
    words = ", ".join(f"{value}: WORD" for value in values)
    return UserError(
        f"{name}: {roles['label']} holds {', '.join(values)}, and not all of these say whether an answer is good. "
        f"{block}.labels={{{words}}} says it: each WORD is true (a good answer) or false."
    )


def refuse_judged(
    table: Table, mapping: ColumnMapping, source: Source, block: str, columns: list[str], rows: list[dict[str, Any]]
) -> None:
    """Raise UserError for examples to learn from, if something beside them says how good each answer is and is not
    read: the bad answers would be learnt, too."""
    form = mapping.format
    if source.task or not block.startswith("data.sources") or form.compares or isinstance(form, KTO | Prompts | Texts):
        return
    read = {top for path in mapping.first_paths.values() for top in top_columns(path)} | form.dropped
    for column in columns:
        for path in [] if column in read else score_paths(column, rows):
            values = sorted({label_word(value_at(row, path)) for row in rows} - {"", "nan"})
            if len(values) > 1:
                words = (
                    ", ".join(f"{value}: WORD" for value in values) if len(values) <= MAX_SHOWN else "VALUE: WORD, …"
                )
                raise UserError(
                    f"{table.name}: {path} says how good each answer is ({shortlist(values)}), and nothing reads it. "
                    f"{block}.columns={{{column}: null}} learns from all answers; {block}.columns={{label: {path}}} "
                    f"{block}.labels={{{words}}} from some: each WORD is true (a good answer) or false."
                )


def score_paths(column: str, rows: list[dict[str, Any]]) -> list[str]:
    """The places in a column that say how good an answer is: itself, or what is inside of it."""
    keys = dict.fromkeys(key for row in rows for key in nested_keys(row.get(column)))
    if not keys:
        return [column] if normal_name(column) in JUDGING else []
    return [f"{column}.{key}" for key in keys if {normal_name(column), normal_name(key)} & JUDGING]


def nested_paths_hint(rows: list[dict[str, Any]]) -> str:
    """Columns with something inside of them, as paths."""
    paths = dict.fromkeys(f"{column}.{key}" for row in rows for column in row for key in nested_keys(row[column]))
    return f"; a COLUMN may be what is inside of one: {shortlist([*paths])}" if paths else ""


def missing_header_hint(name: str) -> str:
    """What helps where the first line of a table was taken for its header, and is a row."""
    file = FilePath(name)
    mark = next((mark for kind, mark in ((".csv", ","), (".tsv", "\\t")) if kind in file.suffixes), None)
    return (
        f". If its first line is a row: (printf 'NAME{mark}NAME\\n'; cat {file.name}) > NEW{file.suffix}"
        if mark
        else ""
    )


def missing_column_error(source: Source, block: str, where: str, columns: list[str]) -> UserError | None:
    """That a role is given a column which is not among these."""
    if not (missing := missing_column(source.columns, columns)):
        return None
    role, column = missing
    problem = f"{block}.columns={{{role}: {column}}}: {where} has no such column"
    return UserError(f"{problem}. There are: {shortlist(columns)}.")


def nested_user_paths(source: Source) -> set[tuple[str, str]]:
    """The roles that a user gives to what is inside of a column, each with its path."""
    return {(role, path) for role, paths in source.columns.items() for path in path_parts(paths) if "." in path}


def missing_key_error(
    missing: Collection[tuple[str, str]], block: str, where: str, rows: list[dict[str, Any]]
) -> UserError:
    """That a path leads into none of the rows, and what there is where it ends."""
    role, path = min(missing)
    steps = path.split(".")
    deep = max(i for i in range(1, len(steps)) if i == 1 or any(has_path(row, ".".join(steps[:i])) for row in rows))
    before, step = ".".join(steps[:deep]), steps[deep]
    keys = dict.fromkeys(key for row in rows for key in nested_keys(value_at(row, before)))
    there = nearest(step, keys) if keys else " It has no keys."
    return UserError(f"{block}.columns={{{role}: {path}}}: {where} has no {step!r} in {before}.{there}")


def shortlist(columns: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(columns) - MAX_SHOWN} more" if len(columns) > MAX_SHOWN else ""
    return f"{', '.join(columns[:MAX_SHOWN])}{more}"


def refuse_unanswered(
    table: Table, mapping: ColumnMapping, source: Source, block: str, columns: list[str], row: dict[str, Any]
) -> None:
    """Raise UserError for a file that has no one answer to each request, where one is to be learnt from or compared
    with."""
    trained = block.startswith("data.sources")  # others are for the evaluation, which has one split and no pairs
    shares = f" {block}.splits={{preference: 1.0}} takes its prompts alone;" * trained
    if isinstance(mapping.format, Prompts):
        fitting = [task for task in plugins.labelled() if task != OPTIONS_TASK and fits_task(task, Source(), columns)]
        phrased = f" {block}.task={fitting[0]} phrases them;" if fitting else ""
        raise UserError(
            f"{table.name}: {mapping.describe()} are requests without answers. The columns are {', '.join(columns)}: "
            f"{block}.columns={{completion: COLUMN}} names the answers;{phrased}{shares}".rstrip(";")
            + "."
        )
    if mapping.format.compares:
        subset = f" label.subset={source.subset}" if source.subset else ""
        pairs = f" label=dataset label.path={source.path}{subset} trains on them;" * trained
        ways = f"{pairs}{chosen_only_hint(mapping, block, row)}{shares}".rstrip(";")
        raise UserError(
            f"{table.name}: {mapping.describe()} are preferences, and one answer to each request is wanted"
            + (f":{ways}." if ways else ".")
        )


def chosen_only_hint(mapping: ColumnMapping, block: str, row: dict[str, Any]) -> str:
    """The setting that has only the chosen answers read, or the first of several."""
    chosen, completions = mapping.first_paths.get("chosen"), mapping.first_paths.get("completions")
    prompt_paths = {
        role: path
        for role, path in mapping.first_paths.items()
        if role in (*PROMPT, *CONTEXT) and role in mapping.user_columns
    }
    if "messages" in mapping.first_paths:
        prompt_paths["prompt"] = mapping.first_paths["messages"]
    before = "".join(f"{role}: {path}, " for role, path in prompt_paths.items())
    answers = value_at(row, completions) if isinstance(completions, str) else None
    if isinstance(answers, list) and all(isinstance(answer, str) for answer in answers):
        return f" {block}.columns={{{before}completion: {completions}.0}} takes the first answer of each;"
    if chosen is None:
        return ""
    role = "messages" if is_whole(value_at(row, chosen)) else f"{before}completion"
    return f" {block}.columns={{{role}: {chosen}, rejected: null}} takes the chosen ones;"


def fits_task(task: str, source: Source, columns: list[str]) -> bool:
    """Whether a file has the columns of a ready-made task."""
    format = Phrased(replace(source, task=task))
    return {*format.needs} <= resolve_columns(columns, format.roles, source.columns).keys()


def refuse_options(table: Table, source: Source, block: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Raise UserError for a file whose requests have options to choose from, which mean nothing without them."""
    if source.task or source.format or source.columns:
        return
    paths = resolve_columns(columns, Phrased(replace(source, task=OPTIONS_TASK)).roles, {})
    problem = f"{table.name}: each request has options to choose from"
    options = str(paths.get("options"))
    if {"question", "options", "label"} <= {*paths} and any(isinstance(row.get(options), list | dict) for row in rows):
        raise UserError(f"{problem}, in {options}. {block}.task={OPTIONS_TASK} phrases them.")
    choices = [column for column in columns if CHOICE.fullmatch(normal_name(column))]
    if len(choices) > 1 and "label" in paths:
        question = f"question: {paths.get('question', 'COLUMN')}, "
        label = str(paths["label"])
        answers = [str(row[label]).strip() for row in rows if not is_empty(row.get(label))]
        texts = [str(row.get(column)).strip() for row in rows for column in choices]
        names = {*LETTERS[: len(choices)], *LETTERS[: len(choices)].lower(), *map(str, range(len(choices) + 1))}
        if not {*answers} <= {*names, *texts}:  # the right one has a column of its own
            choices = [*choices, label]
        setting = f"{block}.columns={{{question}options: [{', '.join(choices)}], label: {label}}}"
        raise UserError(f"{problem}, in {shortlist(choices)}. {block}.task={OPTIONS_TASK} {setting} phrases them.")


def refuse_rivals(
    table: Table, mapping: ColumnMapping, block: str, columns: list[str], rows: list[dict[str, Any]]
) -> None:
    """Raise UserError for a file in which several columns may be the request or the answer, and say something else."""
    used = (
        {*mapping.first_paths.values()}
        if all(isinstance(path, str) for path in mapping.first_paths.values())
        else set()
    )
    for role, names in RIVALS.items():
        column = mapping.first_paths.get(role)
        if not isinstance(column, str) or role in mapping.user_columns or normal_name(column) not in names:
            continue
        for other in columns:
            free = other not in used and mapping.user_columns.get(other, other) is not None
            if (
                free
                and normal_name(other) in names
                and any(texts_differ(row.get(column), row.get(other), role) for row in rows)
            ):
                ways = " or ".join(f"{block}.columns={{{role}: {candidate}}}" for candidate in (column, other))
                raise UserError(f"{table.name}: both {column} and {other} may be the {role}. {ways} says which it is.")


def texts_differ(one: Any, other: Any, role: str) -> bool:
    """Whether two texts say different things. A request that holds another says it; an answer may do without."""
    if not isinstance(one, str) or not isinstance(other, str) or not one.strip() or not other.strip():
        return False
    a, b = one.strip(), other.strip()
    return a != b and (role == "completion" or not (a in b or b in a))
