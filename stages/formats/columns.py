"""Which column of a file has which role, and what becomes of the others.

Of those that nothing reads, one that changes what the row means is refused by name; another is named once.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.errors import UserError
from stages.formats.turns import CALL_KEYS, CONTENT_KEYS, REASONING_KEYS, ROLE_KEYS, ROLES, first_value, is_empty

TURN_KEYS = {*CALL_KEYS, *REASONING_KEYS, "tool_call_id"}
TURN_ROLES = ("messages", "prompt", "completion", "chosen", "rejected", "a", "b")  # roles with turns in them

# How much a row or a turn counts. One that says what is done anyway is no matter: every answer counts once.
WEIGHTS = {"loss_weight", "sample_weight", "weight", "train"}
CHANGING = {
    # whether the answer is a good one
    "label", "labels", "kto_tag", "feedback", "reward",
    # what the model was asked
    "input", "context", "passage", "documents", "history", "system", "system_prompt", "system_message", "instances",
    "options", "choices",
    "image", "images", "video", "videos", "audio", "audios",
    # what it could do, and did before it answered
    "tools", "functions", "tool_calls", "function_call", "tool_call_id", "chat_template_kwargs",
    "reasoning", "reasoning_content", "thinking",
    # who said it, where a row is a turn, or where turns are texts
    "role", "parent_id", "speakers", "speaker",
}  # fmt: skip
SPEAKER_KEYS = {"name"}  # who speaks
# Answers to choose from, in a column each: the request means nothing without them.
CHOICE = re.compile(r"((option|choice|opt|op|ending|distractor|sol)_?)?[a-e1-5]|answer_?[a-e0-5]")
# What a model thought before it answered, however the column is called.
THOUGHTS = re.compile(
    r"(?!(is|has|enable|use|skip|with|no)_)(\w+_)?(cot|thoughts?|thinking|reasoning)(_(trace|trajectory|trajectories|process|steps))?"
)
# Values by which a column calls the answer of its row a bad one, or the row no answer.
BAD = {
    **dict.fromkeys(("is_safe", "is_correct", "is_accepted", "is_good", "is_helpful"), ("false", "0")),
    **dict.fromkeys(("safe", "correct", "accepted", "passed", "success", "thumbs_up", "liked"), ("false",)),
    **dict.fromkeys(("response_label", "response_harm_label"), ("unsafe", "harmful")),
    **dict.fromkeys(("is_harmful", "is_toxic", "is_rejected"), ("true", "1")),
    "quality": ("bad",),
    "answer": ("reject", "ignore"),  # of somebody who annotates with Prodigy
}
# What may stand beside running text, as a word of its name. With any other column it is text of some task.
TEXT_METADATA = set(
    "id idx index key hash url uri link source src domain site host meta metadata timestamp time date year created "
    "added updated version lang language title name author authors publisher file filename path repo dump split "
    "subset set score perplexity count counts length len size num n tokens chars words license licence quality "
    "dataset".split()
)

Path = str | list[str]  # a column; below it keys or places, after dots; or several of these


class ChangesMeaning(UserError):
    """A column that would change what a row means, and that its format does not read."""

    def __init__(self, column: str, reason: str = "", role: str = ""):
        super().__init__(f"the column {column!r} {reason or 'changes what a row means, and is not read'}")
        self.column, self.reason, self.role = column, reason, role if reason else "ROLE"


def normal_name(name: str) -> str:
    """A column's name as names are compared: without case, and with one underscore for all that is no letter."""
    return re.sub(r"\W+", "_", str(name)).strip("_").lower()


def resolve_columns(
    columns: Collection[str], names: Mapping[str, str], user_columns: Mapping[str, Path | None]
) -> dict[str, Path]:
    """The column of every role that has one among `columns`: as it is `given`, else the first of its names that no
    role before it took. A name with a + is that of several columns, which are read as a list."""
    column_by_name = {normal_name(column): column for column in reversed([*columns])}
    paths = {role: path for role, path in user_columns.items() if path is not None and role in names}
    used = {path for path in paths.values() if isinstance(path, str)} | {
        c for c, p in user_columns.items() if p is None
    }
    nested_tops = {top for path in user_columns.values() if path is not None for top in top_columns(path)}
    for role, options in names.items():
        if role in user_columns:
            continue
        if role == "completions":  # whose scores may be inside of them
            nested_tops = set()
        for name in options.split():
            matches = [column_by_name[part] for part in name.split("+") if part in column_by_name]
            if len(matches) == name.count("+") + 1 and not (used | nested_tops) & {*matches}:
                paths[role] = matches if len(matches) > 1 else matches[0]
                used.update(matches)
                break
    return paths


def missing_column(user_columns: Mapping[str, Path | None], columns: Collection[str]) -> tuple[str, str] | None:
    """The first role that is given a column which is not among these, with that column."""
    for role, path in user_columns.items():
        for top in path_parts(path):
            if not {top, top.partition(".")[0]} & {*columns}:
                return role, top
    return None


def path_parts(path: Path | None) -> list[str]:
    return [path] if isinstance(path, str) else path or []


def top_columns(path: Path) -> list[str]:
    """The columns that a path begins in: itself too, since a column's name may have dots."""
    return [top for part in path_parts(path) for top in (part, part.partition(".")[0])]


def value_at(value: Any, path: Path) -> Any:
    """What stands under a path; None where nothing does. A key, on a list, is asked of all its elements."""
    if isinstance(path, list):
        return [value_at(value, part) for part in path]
    if isinstance(value, dict) and path in value:
        return value[path]
    head, _, tail = path.partition(".")
    value = parse_cell(value)
    if isinstance(value, list) and not head.isdecimal():
        return [value_at(item, path) for item in value]
    if isinstance(value, list):
        value = value[int(head)] if int(head) < len(value) else None
    else:
        value = value.get(head) if isinstance(value, dict) else None
    return value_at(value, tail) if tail and value is not None else value


def has_path(value: Any, path: str) -> bool:
    """Whether a value has a place of this path, be it an empty one."""
    if isinstance(value, dict) and path in value:
        return True
    head, _, tail = path.partition(".")
    value = parse_cell(value)
    if isinstance(value, list) and not head.isdecimal():
        return any(has_path(item, path) for item in value)
    items = {str(i): item for i, item in enumerate(value)} if isinstance(value, list) else value
    return isinstance(items, dict) and head in items and (not tail or has_path(items[head], tail))


def parse_cell(value: Any) -> Any:
    """An object or a list that stands as JSON in a string, as in a cell of a table."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def nested_keys(value: Any) -> list[str]:
    """The keys of an object, or of the objects in a list."""
    if isinstance(value := parse_cell(value), list):
        return list(dict.fromkeys(key for item in value for key in nested_keys(item) if isinstance(item, dict)))
    return [str(key) for key in value] if isinstance(value, dict) else []


def label_word(value: Any) -> str:
    """A label as a word: 1, 1.0 and "1" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower().removesuffix(".0") if value is not None else ""


@dataclass(frozen=True)
class UnreadColumns:
    """What rows with the same columns hold beside what is read of them: the `columns` that no role reads, and whether
    each would change what a row means; which values of some of them would; where `turns` are, with the keys that are
    known of answers among them and of which role; and which keys the user `dropped`."""

    columns: Mapping[str, bool]
    bad: Mapping[str, Collection[str]]
    turns: Mapping[str, tuple[str, Collection[str]]]
    dropped: Collection[str]

    @classmethod
    def build(
        cls,
        columns: Collection[str],
        paths: Mapping[str, Path],
        dropped: Collection[str],
        decided_names: Collection[str],
        texts: bool,
        weighted_roles: Collection[str],
        judged: bool,
    ) -> "UnreadColumns":
        """Columns that the user dropped count as read; of roles that the user gave to another column the names are
        `decided`, and change nothing. `texts`: the rows are running text. `weighed`: the roles of whose answers a
        weight is read. `judged`: it is read which answers are good."""
        read_columns = {column for path in paths.values() for column in top_columns(path)} | {*dropped}
        thoughts = "reasoning" not in paths
        changing_by_column = {}
        for column in columns:
            if column not in read_columns:
                name = normal_name(column)
                changes = (
                    name in CHANGING | WEIGHTS or CHOICE.fullmatch(name) or (thoughts and THOUGHTS.fullmatch(name))
                )
                is_task_text = texts and not TEXT_METADATA & set(name.split("_"))
                changing_by_column[column] = name not in decided_names and bool(changes or is_task_text)
        turns = {
            path: (role, {*dropped, *(WEIGHTS if role in weighted_roles else ())})
            for role in TURN_ROLES
            if isinstance(path := paths.get(role), str)
        }
        bad = (
            {}
            if judged
            else {column: BAD[name] for column in changing_by_column if (name := normal_name(column)) in BAD}
        )
        return cls(changing_by_column, bad, turns, dropped)


def list_unread(row: Mapping[str, Any], values: Mapping[str, Any], unread: UnreadColumns) -> list[str]:
    """The columns of a row with something in them that no role reads; keys of turns as `messages.key`. `values` are
    those of its roles.

    Raises:
        ChangesMeaning: where one of them changes what the row means.
    """
    columns = []
    for column, changing in unread.columns.items():
        if has_content(column, row[column], 1):
            if changing:
                raise ChangesMeaning(column)
            columns.append(column)
    for column, bad in unread.bad.items():
        if (value := str(row[column]).lower()) in bad:
            role = "label" if value in ("false", "0", "bad") else ""
            raise ChangesMeaning(column, f"is {row[column]!r:.40}: it calls the answer of its row a bad one", role)
    for path, (role, of_answers) in unread.turns.items():
        if isinstance(turns := values.get(role), (list, dict)):
            columns += [f"{path}.{key}" for key in unread_turn_keys(turns, path, unread.dropped, of_answers)]
    return columns


def unread_turn_keys(turns: Any, column: str, dropped: Collection[str], of_answers: Collection[str]) -> list[str]:
    """The keys that nothing reads, of the turns of a conversation or of one turn. `of_answers` are known of answers.

    Raises:
        ChangesMeaning: as `unread`.
    """
    unread_keys = dict[str, None]()
    for turn in turns if isinstance(turns, list) else [turns]:
        if isinstance(turn, dict) and any(key in turn for key in ROLE_KEYS):
            role = ROLES.get(str(first_value(turn, ROLE_KEYS)).lower())
            role_keys = {"tool": SPEAKER_KEYS, "assistant": of_answers}.get(str(role), ())
            content_keys = (
                next((key for key in keys if not is_empty(turn.get(key))), "") for keys in (ROLE_KEYS, CONTENT_KEYS)
            )
            read_keys, default_weight = {*TURN_KEYS, *content_keys, *dropped, *role_keys}, int(role == "assistant")
            for key in (
                str(k) for k, value in turn.items() if k not in read_keys and has_content(k, value, default_weight)
            ):
                if key.lower() in CHANGING | WEIGHTS | SPEAKER_KEYS:
                    raise ChangesMeaning(f"{column}.{key}")
                unread_keys[key] = None
    return list(unread_keys)


def has_content(key: Any, value: Any, default_weight: int) -> bool:
    """Whether a key says something: the usual weight says nothing."""
    return not (is_empty(value) or (value == default_weight and str(key).lower() in WEIGHTS))
