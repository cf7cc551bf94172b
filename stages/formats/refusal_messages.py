"""Errors for a file that matches no format, or that may be read in several ways. Each names the setting that helps."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, nearest, suggest
from stages.config.installation import read_beside
from stages.config.override_text import override, overrides
from stages.formats import columns as column_paths
from stages.formats.chat import ends_with_request
from stages.formats.column_mapping import (
    MAX_SHOWN,
    ColumnMapping,
    Purpose,
    allowed_formats,
    build_mapping,
    format_name,
)
from stages.formats.columns import has_path, label_word, nested_keys, normal_name, value_at
from stages.formats.compared import in_order
from stages.formats.format import STATED, is_whole
from stages.formats.guesses import (
    NEAR,
    accompanies_text,
    best_guess,
    candidates_in,
    find_ids,
    holds_scores,
)
from stages.formats.implicit import Implicit, shared_beginning
from stages.formats.labelled import Labelled
from stages.formats.phrased import Phrased
from stages.formats.prompts import Prompts
from stages.formats.readers.row import Way, typed_ways
from stages.formats.scored import Scored, Several, flattened, keys_of
from stages.formats.texts import Texts
from stages.formats.turns import role_of
from stages.store import plugins
from stages.store.splits import NEED_AN_ANSWER

TEXTS = read_beside(__file__)
MAX_EXAMPLE = 60  # characters of a prompt
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
            return unknown_role_error(role, path, roles, block)
    missing = {
        (role, path)
        for role, path in user_paths(source)
        if not any(has_path(row, path) for row in head.rows)
    }
    if missing:
        return missing_path_error(missing, block, head.name, head.rows)
    if source.task:
        return no_task_roles_error(head, problem)
    if error := unclear_labels_error(head):
        return error
    is_labelled = head.purpose not in (Purpose.preferences, Purpose.candidates)
    if tasks := [
        task
        for task in plugins.label_task_names()
        if is_labelled and fits_task(task, source, columns)
    ]:
        settings = " or ".join(override(f"{block}.task", task) for task in tasks)
        text, label = texts_and_labels(head, tasks[0])
        as_they_are = override(f"{block}.columns", {"prompt": text, "completion": label})
        return UserError(
            TEXTS["labelled_set"].format(problem=problem, tasks=settings, as_they_are=as_they_are)
        )
    return unmapped_error(head, problem)


def unmapped_error(head: FileHead, problem: str) -> UserError:
    """Return the error for columns without known names: what is read, and a guess at the columns that lack."""
    if not head.columns:
        return UserError(f"{head.name}: the first rows have no values, and no setting finds any.")
    if error := unread_answers_error(head):
        return error
    ids = find_ids(head.rows, head.columns)
    guess = best_guess(head.source, head.purpose, head.columns, head.rows)
    if ids and (guess is None or guess.nameless):
        no_ids = f"{problem}. {shortlist(ids)}: ids of tokens, and no setting reads ids"
        if len(ids) == len(head.columns):
            return UserError(f"{no_ids}. Write a file with text or messages.")
        without = override(f"{head.block}.columns", dict.fromkeys(ids))
        return UserError(f"{no_ids}. Type {without} to leave them out.")
    implicit = implicit_error(head)
    if implicit and (guess is None or guess.nameless):
        return implicit
    if guess is None and head.source.format:
        detected = override(f"{head.block}.format", None)
        return UserError(
            f"{problem} that the format {head.source.format} needs. Type {detected} to detect the format."
        )
    if guess is None:
        return UserError(
            f"{problem}. The file needs {head.purpose}, and no setting finds that in its columns. Write a file with such "
            f"columns.{nested_paths_hint(head.rows)}"
        )
    if guess.read:
        read = ", ".join(
            role if path == role else f"{path_text(path)} as {role}"
            for role, path in guess.read.items()
        )
        lacking = " and ".join(guess.guessed)
        problem = f"{head.name}: can be read: {read}. No column has a known name for {lacking}"
        problem = f"{problem}. The columns are {shortlist(head.columns)}"
    setting = override(f"{head.block}.columns", guess.guessed)
    needs = "" if guess.read else f" The file needs {head.purpose}."
    return UserError(f"{problem}.{needs} Did you mean {setting}?{nested_paths_hint(head.rows)}")


def unread_answers_error(head: FileHead) -> UserError | None:
    """Return the error for conversations that end with a request, or answers that are objects, where answers are needed;
    None for any other file."""
    if head.purpose not in (Purpose.preferences, Purpose.candidates):
        return None
    paths = build_mapping(Several(head.source), head.columns, head.source.columns).first_paths
    turns = [value_at(row, paths["messages"]) for row in head.rows] if "messages" in paths else []
    if any(map(has_answer, turns)) and any(map(ends_with_request, turns)):
        way = "Type data.form.turns=cut to end them at their last answer"
        return UserError(f"{head.name}: conversations end with a request. {way}.")
    column = paths.get("completions")
    if not isinstance(column, str):
        return None
    objects = flattened([value_at(row, column) for row in head.rows])
    texts, numbers = (keys_of(objects, kind) for kind in (str, int | float))
    if not texts:
        return None
    columns = {"completions": f"{column}.{texts[0]}"}
    if numbers and head.purpose is Purpose.preferences:
        columns["scores"] = f"{column}.{numbers[0]}"
    setting = override(f"{head.block}.columns", columns)
    if columns.items() <= head.source.columns.items():
        return None
    return UserError(
        f"{head.name}: {column} holds objects without a known text. Did you mean {setting}?"
    )


def path_text(path: column_paths.Path) -> str:
    return path if isinstance(path, str) else " with ".join(path)


def implicit_error(head: FileHead) -> UserError | None:
    """Return the error for a chosen and a rejected text without a prompt that begin alike; None for any other file."""
    if head.purpose is not Purpose.preferences or head.source.format:
        return None
    paths = build_mapping(Implicit(head.source), head.columns, head.source.columns).first_paths
    if not {"chosen", "rejected"} <= paths.keys():
        return None
    texts = [[value_at(row, paths[side]) for side in ("chosen", "rejected")] for row in head.rows]
    pairs = [pair for pair in texts if all(isinstance(text, str) for text in pair)]
    beginnings = [shared_beginning(*pair) for pair in pairs]
    if 2 * sum(map(bool, beginnings)) < len(head.rows) or not pairs:
        return UserError(
            f"{head.name}: there is no prompt beside {paths['chosen']} and {paths['rejected']}, which do not begin alike "
            "either. No setting reads them without their prompts: write a column with these."
        )
    example = next(filter(None, beginnings))
    setting = override(f"{head.block}.format", format_name(Implicit))
    return UserError(
        f"{head.name}: there is no prompt beside {paths['chosen']} and {paths['rejected']}. Type {setting} to read the words "
        f"with which both begin as the prompt: {shorten(example, MAX_EXAMPLE)!r} in the first row."
    )


def unknown_role_error(
    role: str, path: column_paths.Path, roles: Collection[str], block: str
) -> UserError:
    """Return the error for a role that no format has, with the nearest one in its place."""
    problem = f"{block}.columns: {role!r} is not a role.{suggest(role, roles)}"
    near = nearest(role, sorted(roles))
    if near is None:
        return UserError(
            f"{problem} Type {override(f'{block}.columns', {role: None})} to leave it out."
        )
    return UserError(f"{problem} Type {override(f'{block}.columns', {role: None, near: path})}.")


def no_task_roles_error(head: FileHead, problem: str) -> UserError:
    """Return the error for a labelled set without the columns of its task, with the next columns as a guess."""
    form = Phrased(head.source)
    found = column_paths.resolve_columns(head.columns, form.roles, head.source.columns)
    lacking = [role for role in form.needs if role not in found]
    used = column_paths.used_columns(found.values())
    free = [column for column in head.columns if column not in used | form.dropped]
    needed = "; ".join(f"{role} ({names})" for role, names in form.roles.items())
    if len(free) < len(lacking):
        way = f"Type {override(f'{head.block}.task', None)} to read the columns without a task."
    else:
        guessed = dict(zip(lacking, free, strict=False))
        way = f"Did you mean {override(f'{head.block}.columns', guessed)}?"
    return UserError(
        TEXTS["no_task_roles"].format(
            problem=problem, task=head.source.task, needed=needed, way=way
        )
    )


def texts_and_labels(head: FileHead, task: str) -> tuple[column_paths.Path, column_paths.Path]:
    """Return the columns of a labelled set's text and of its label, or answer."""
    form = Phrased(replace(head.source, task=task))
    paths = column_paths.resolve_columns(head.columns, form.roles, head.source.columns)
    needed = [paths[role] for role in form.needs]
    return needed[0], needed[-1]


def unclear_labels_error(head: FileHead) -> UserError | None:
    """Return the error for single answers with labels that may mean good or bad; None for any other file."""
    roles = build_mapping(Labelled(head.source), head.columns, head.source.columns).first_paths
    if "label" not in roles or not (
        "messages" in roles or {"prompt", "completion"} <= roles.keys()
    ):
        return None
    values = sorted(
        {label_word(value_at(row, roles["label"])) for row in head.rows} - {""}, key=in_order
    )
    if not values:
        return None
    ways = [override(f"{head.block}.labels", words) for words in flags_of(values)]
    if not ways and "completion" in roles:
        columns = {"completions": roles["completion"], "scores": roles["label"], "label": None}
        ways = [override(f"{head.block}.columns", columns)]
    words = {"column": roles["label"], "values": shortlist(values), "ways": " or ".join(ways)}
    return UserError(TEXTS["unclear_labels"].format(name=head.name, **words)) if ways else None


def flags_of(values: Sequence[str]) -> list[dict[str, str]]:
    """Return two guesses at which of ordered values mark good answers: the upper half, or the lower one. [] for more
    values than can be typed."""
    if len(values) > MAX_SHOWN:
        return []
    ordered = sorted(values, key=goodness)
    half = len(values) // 2
    low, high = ordered[:half], ordered[half:]
    return [
        dict.fromkeys(low, "false") | dict.fromkeys(high, "true"),
        dict.fromkeys(low, "true") | dict.fromkeys(high, "false"),
    ]


def goodness(value: str) -> int:
    """Return 1 for a word that another language has for good, -1 for one that it has for bad, and 0 for any other."""
    return (value in NEAR["chosen"]) - (value in NEAR["rejected"])


def refuse_judged(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for training examples with scores that nothing reads, since bad answers would be trained on."""
    form, block = mapping.format, head.block
    if head.source.task or not block.startswith(("data.sources", "data.file")):
        return
    if form.compares or isinstance(form, Labelled | Prompts | Texts):
        return
    read = column_paths.used_columns(mapping.first_paths.values()) | form.dropped
    for column in head.columns:
        for path in [] if column in read else score_paths(column, head.rows):
            words = {label_word(value_at(row, path)) for row in head.rows} - {"", "nan"}
            values = sorted(words, key=in_order)
            if len(values) > 1:
                settings = [
                    {"columns": {"label": path}, "labels": flags} for flags in flags_of(values)
                ]
                ways = [Way({"columns": {column: None}}, "to train on all answers")]
                ways += [Way(each, "to train on the good ones alone") for each in settings]
                typed = typed_ways(ways, block)
                texts = {"path": path, "values": shortlist(values), "ways": typed}
                raise UserError(TEXTS["judged"].format(name=head.name, **texts))


def refuse_unscored(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for several answers without known scores, with the numbers of each row that may be their scores."""
    form = mapping.format
    if not isinstance(form, Scored):
        return
    read = [mapping.values(row).values for row in head.rows]
    complete = [values for values in read if values.keys() >= {*form.needs}]
    values = next(filter(form.fits, complete), {})
    answers = values.get("completions", "")
    if {"scores", "ranks"} & {**form.split_objects(answers), **values}.keys():
        return
    ways = "No setting finds any, and answers without scores cannot be compared: let a labeler score them"
    candidates = filter(holds_scores, candidates_in(head.columns, head.rows, form.dropped))
    numbers = [each.path for each in sorted(candidates, key=accompanies_text)]
    if numbers:
        key = f"{head.block}.columns"
        scores, ranks = (override(key, {role: numbers[0]}) for role in ("scores", "ranks"))
        ways = f"Type {scores}, or {ranks} if the lowest is the best"
    column = mapping.first_paths["completions"]
    holds = ", ".join(nested_keys(answers)) or "text alone"
    raise UserError(f"{head.name}: {column} holds {holds}, but no known scores. {ways}.")


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
    return f" A column may also be a key inside a column: {shortlist([*nested])}." if nested else ""


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
    key = f"{block}.columns"
    problem = f"{key}={{{role}: {path}}}: {where} has no"
    parent, _, step = path.rpartition(".")
    while parent and not any(has_path(row, parent) for row in rows):
        parent, _, step = parent.rpartition(".")
    if not parent:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        near = nearest(path, columns, 0.0) or columns[0]
        way = f"Did you mean {override(key, {role: near})}?"
        return UserError(f"{problem} such column. Its columns are {shortlist(columns)}. {way}")
    keys = dict.fromkeys(key for row in rows for key in nested_keys(value_at(row, parent)))
    if not keys:
        way = f"{parent} has no keys: type {override(key, {role: parent})}"
        return UserError(f"{problem} {step!r} in {parent}. {way}.")
    near = nearest(step, list(keys), 0.0) or next(iter(keys))
    way = f"Did you mean {override(key, {role: f'{parent}.{near}'})}?"
    return UserError(f"{problem} {step!r} in {parent}. Its keys are {shortlist([*keys])}. {way}")


def shortlist(names: list[str], most: int = MAX_SHOWN) -> str:
    """Return the first names in a line, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def refuse_unanswered(head: FileHead, mapping: ColumnMapping) -> None:
    """Raise UserError for a file without exactly one answer to each request, where training or a check needs one."""
    block, source = head.block, head.source
    # Other blocks are sets of the evaluation: they have no splits, and nothing is trained on their pairs.
    trained = block.startswith(("data.sources", "data.file"))
    prompts_alone = list[str]()
    if source.check:
        prompts_alone = [f"{override(f'{block}.check', None)} to read the prompts without answers"]
    if trained and any(source.shares.get(split) for split in NEED_AN_ANSWER):
        shares = {**dict.fromkeys(source.splits, 0.0), "preference": 1.0}
        prompts_alone = [f"{override(f'{block}.splits', shares)} to read the prompts alone"]
    if isinstance(mapping.format, Prompts):
        tasks = [
            t
            for t in plugins.label_task_names()
            if t != OPTIONS_TASK and fits_task(t, Source(), head.columns)
        ]
        ways = []
        guess = best_guess(
            replace(source, columns={**mapping.first_paths, **source.columns}),
            Purpose.candidates,
            head.columns,
            head.rows,
        )
        if guess and "completion" in guess.guessed:
            columns = override(f"{block}.columns", guess.guessed)
            ways = [f"{columns} if these are the answers"]
        if any(has_answer(mapping.values(row).values.get("messages")) for row in head.rows):
            ways = ["data.form.turns=cut to end conversations at their last answer", *ways]
        prompt = mapping.first_paths.get("prompt")
        if any(has_answer(mapping.values(row).values.get("prompt")) for row in head.rows):
            columns = override(f"{block}.columns", {"messages": prompt})
            ways = [f"{columns} to read whole conversations", *ways]
        ways += [
            f"{override(f'{block}.task', task)} to write the rows as instructions"
            for task in tasks[:1]
        ] + prompts_alone
        words = {"columns": ", ".join(head.columns), "ways": ", or ".join(ways)}
        raise UserError(
            TEXTS["unanswered"].format(name=head.name, mapping=mapping.describe(), **words)
        )
    if mapping.format.compares:
        of_preferences = {"label": "dataset", "label.path": source.path}
        if source.subset:
            of_preferences["label.subset"] = source.subset
        ways = [f"{overrides(of_preferences)} to train on the preferences"] * trained
        columns_of_one = one_answer(head, mapping)
        if columns_of_one:
            ways += [
                f"{override(f'{block}.columns', columns_of_one)} to read one answer of each row"
            ]
        problem = f"{head.name}: {mapping.describe()} are preferences, and one answer to each request is needed"
        raise UserError(f"{problem}. Type {', or '.join(ways + prompts_alone)}.")


def one_answer(head: FileHead, mapping: ColumnMapping) -> dict[str, Any]:
    """Return the value of `columns` that reads one answer of each row of preferences."""
    paths = mapping.first_paths
    if chosen := paths.get("chosen"):
        role = "messages" if is_whole(value_at(head.rows[0], chosen)) else "completion"
        return {role: chosen, "rejected": None}
    if several := paths.get("completions"):
        return {"completion": f"{several}.0"}
    first = paths.get("a")
    return {"completion": first} if first else {}


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
    task = override(f"{block}.task", OPTIONS_TASK)
    option = str(roles.get("options"))
    if {"question", "options", "label"} <= {*roles} and any(
        isinstance(r.get(option), list | dict) for r in head.rows
    ):
        raise UserError(f"{problem} {option}. Type {task} to write them into the request.")
    choices = [column for column in columns if column_paths.CHOICE.fullmatch(normal_name(column))]
    if len(choices) > 1 and "label" in roles:
        label = str(roles["label"])
        texts = {str(row.get(column)).strip() for row in head.rows for column in choices}
        answers = {str(row.get(label)).strip() for row in head.rows}
        answers = {answer for answer in answers if not NAMED_OPTION.fullmatch(answer)}
        choices += [label] * (not answers <= texts)  # the right option has a column of its own
        others = [column for column in columns if column not in (*choices, label)]
        question = roles.get("question") or next(iter(others), label)
        mapping = {"question": question, "options": choices, "label": label}
        way = f"{task} {override(f'{block}.columns', mapping)}"
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
                    override(f"{head.block}.columns", {role: name}) for name in (column, other)
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
