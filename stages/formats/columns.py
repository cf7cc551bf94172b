"""Which column of a file has which role, and what becomes of the others.

Of those that nothing reads, one that changes what the row means is refused by name; another is named once.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stages.config.errors import UserError
from stages.formats.turns import CALLS, REASONING, ROLES, WHAT, WHO, empty

TURN = {*WHO, *WHAT, *CALLS, *REASONING, "tool_call_id"}
TURNS = ("messages", "prompt", "completion", "chosen", "rejected", "a", "b")  # roles with turns in them

# How much a row or a turn counts. One that says what is done anyway is no matter: every answer counts once.
WEIGHTS = {"loss_weight", "sample_weight", "weight", "train"}
CHANGING = {
    # whether the answer is a good one
    "label", "labels", "kto_tag", "feedback",
    # what the model was asked
    "input", "context", "passage", "documents", "history", "system", "system_prompt", "system_message", "instances",
    "options", "choices",
    "image", "images", "video", "videos", "audio", "audios",
    # what it could do, and did before it answered
    "tools", "functions", "tool_calls", "function_call", "tool_call_id", "chat_template_kwargs",
    "reasoning", "reasoning_content", "thinking",
    # who said it, where a row is a turn
    "role", "parent_id",
}  # fmt: skip
OF_A_TURN = {"name"}  # who speaks
# Answers to choose from, in a column each: the request means nothing without them.
CHOICE = re.compile(r"((option|choice|opt|op|ending|distractor|sol)_?)?[a-e1-5]")
# What may stand beside running text, as a word of its name. With any other column it is text of some task.
BESIDE_A_TEXT = set(
    "id idx index key hash url uri link source src domain site host meta metadata timestamp time date year created "
    "added updated version lang language title name author authors publisher file filename path repo dump split "
    "subset set score perplexity count counts length len size num n tokens chars words license licence quality "
    "dataset".split()
)

Path = str | list[str]  # a column; below it keys or places, after dots; or several of these


class ChangesMeaning(UserError):
    """A column that would change what a row means, and that its format does not read."""

    def __init__(self, column: str, reason: str = ""):
        super().__init__(f"the column {column!r} {reason or 'changes what a row means, and is not read'}")
        self.column, self.reason = column, reason


def normal(name: str) -> str:
    """A column's name as names are compared: without case, and with one underscore for all that is no letter."""
    return re.sub(r"\W+", "_", str(name)).strip("_").lower()


def resolved(columns: Collection[str], names: Mapping[str, str], given: Mapping[str, Path | None]) -> dict[str, Path]:
    """The column of every role that has one among `columns`: as it is `given`, else the first of its names that no
    role before it took."""
    known = {normal(column): column for column in reversed([*columns])}
    found = {role: path for role, path in given.items() if path is not None and role in names}
    taken = {path for path in found.values() if isinstance(path, str)} | {c for c, p in given.items() if p is None}
    for role, options in names.items():
        if role in given:
            continue
        for name in options.split():
            if (column := known.get(name)) is not None and column not in taken:
                found[role] = column
                taken.add(column)
                break
    return found


def lacking(given: Mapping[str, Path | None], columns: Collection[str]) -> tuple[str, str] | None:
    """The first role that is given a column which is not among these, with that column."""
    for role, path in given.items():
        for top in [path] if isinstance(path, str) else path or []:
            if not {top, top.partition(".")[0]} & {*columns}:
                return role, top
    return None


def tops(path: Path) -> list[str]:
    """The columns that a path begins in: itself too, since a column's name may have dots."""
    return [top for each in ([path] if isinstance(path, str) else path) for top in (each, each.partition(".")[0])]


def at(value: Any, path: Path) -> Any:
    """What stands under a path; None where nothing does. A key, on a list, is asked of all its elements."""
    if isinstance(path, list):
        return [at(value, each) for each in path]
    if isinstance(value, dict) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, list) and not head.isdecimal():
        return [at(each, path) for each in value]
    if isinstance(value, list):
        value = value[int(head)] if int(head) < len(value) else None
    else:
        value = value.get(head) if isinstance(value, dict) else None
    return at(value, rest) if rest and value is not None else value


@dataclass(frozen=True)
class Beside:
    """What rows with the same columns hold beside what is read of them: the `columns` that no role reads, and whether
    each would change what a row means; where `turns` are, of which role, with the keys that are known of answers among
    them; and which keys the user `dropped`."""

    columns: Mapping[str, bool]
    turns: Mapping[str, tuple[str, Collection[str]]]
    dropped: Collection[str]

    @classmethod
    def of(
        cls,
        columns: Collection[str],
        paths: Mapping[str, Path],
        dropped: Collection[str],
        decided: Collection[str],
        texts: bool,
        weighed: Collection[str],
    ) -> "Beside":
        """Columns that the user dropped count as read; of roles that the user gave to another column the names are
        `decided`, and change nothing. `texts`: the rows are running text. `weighed`: the roles of whose answers a
        weight is read."""
        known = {column for path in paths.values() for column in tops(path)} | {*dropped}
        found = {}
        for column in columns:
            if column not in known:
                name = normal(column)
                changing = name in CHANGING | WEIGHTS or CHOICE.fullmatch(name)
                foreign = texts and not BESIDE_A_TEXT & set(name.split("_"))
                found[column] = name not in decided and bool(changing or foreign)
        turns = {
            path: (role, {*dropped, *(WEIGHTS if role in weighed else ())})
            for role in TURNS
            if isinstance(path := paths.get(role), str)
        }
        return cls(found, turns, dropped)


def unread(row: Mapping[str, Any], values: Mapping[str, Any], beside: Beside) -> list[str]:
    """The columns of a row with something in them that no role reads; keys of turns as `messages.key`. `values` are
    those of its roles.

    Raises:
        ChangesMeaning: where one of them changes what the row means.
    """
    found = []
    for column, changing in beside.columns.items():
        if says(column, row[column], 1):
            if changing:
                raise ChangesMeaning(column)
            found.append(column)
    for path, (role, of_answers) in beside.turns.items():
        if isinstance(turns := values.get(role), (list, dict)):
            found += [f"{path}.{key}" for key in of_turns(turns, path, beside.dropped, of_answers)]
    return found


def of_turns(turns: Any, column: str, dropped: Collection[str], of_answers: Collection[str]) -> list[str]:
    """The keys that nothing reads, of the turns of a conversation or of one turn. `of_answers` are known of answers.

    Raises:
        ChangesMeaning: as `unread`.
    """
    found = dict[str, None]()
    for turn in turns if isinstance(turns, list) else [turns]:
        if isinstance(turn, dict) and any(key in turn for key in WHO):
            role = ROLES.get(str(turn.get("role", turn.get("from"))).lower())
            more = {"tool": OF_A_TURN, "assistant": of_answers}.get(str(role), ())
            known, weight = {*TURN, *dropped, *more}, int(role == "assistant")
            for key in (str(k) for k, value in turn.items() if k not in known and says(k, value, weight)):
                if key.lower() in CHANGING | WEIGHTS | OF_A_TURN:
                    raise ChangesMeaning(f"{column}.{key}")
                found[key] = None
    return list(found)


def says(key: Any, value: Any, weight: int) -> bool:
    """Whether a key says something: the usual weight says nothing."""
    return not (empty(value) or (value == weight and str(key).lower() in WEIGHTS))
