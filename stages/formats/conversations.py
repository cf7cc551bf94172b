"""Rows become conversations: Alpaca, chat messages, ShareGPT, prompt and completion, plain text."""

from collections.abc import Callable
from typing import Any

from stages.formats.columns import SYSTEM, empty, unused
from stages.formats.files import BadRow
from stages.store.records import Message

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

# How a row of a source is read: the messages up to the last request, and the answer to it or None. Raises BadRow.
Format = Callable[[Any], tuple[list[Message], str | None]]
KINDS = "messages; conversations; instruction, input, output; prompt, completion; text"


def conversation(row: Any) -> tuple[list[Message], str | None]:
    """The messages up to the last request, and the assistant's answer to it, or None where there is none.

    Raises:
        BadRow: for a row that is no conversation.
        ChangesMeaning: for one with a column that nothing can use yet.
    """
    if not isinstance(row, dict):
        raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
    unused(row)
    if "messages" in row or "conversations" in row:
        field = "messages" if "messages" in row else "conversations"
        turns = [*system(row), *(message(turn, field) for turn in listing(row[field], field))]
    elif "instruction" in row:
        request = text(row["instruction"], "instruction")
        if row.get("input"):
            request = f"{request}\n\n{text(row['input'], 'input')}"
        turns = [*earlier(row), {"role": "user", "content": request}, *answer(row, "output")]
    elif "prompt" in row:
        if isinstance(row["prompt"], list):
            turns = [message(turn, "prompt") for turn in row["prompt"]]
            turns += [message(turn, "completion") for turn in row.get("completion") or []]
        else:
            turns = [{"role": "user", "content": text(row["prompt"], "prompt")}, *answer(row, "completion")]
        turns = [*earlier(row), *turns]
    elif "text" in row:
        return [], text(row["text"], "text")
    else:
        raise BadRow("", f"no known columns among {', '.join(map(str, row))}; known: {KINDS}")
    return split_off_answer(turns)


def split_off_answer(turns: list[Message]) -> tuple[list[Message], str | None]:
    """Check who speaks when, and take the last assistant turn off."""
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if "user" not in spoken:
        raise BadRow("", "no user turn")
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRow("", "a system message that is not the first")
    if spoken != (["user", "assistant"] * len(spoken))[: len(spoken)]:
        raise BadRow("", f"user and assistant do not take turns: {', '.join(spoken)}")
    if turns[-1]["role"] == "assistant":
        return turns[:-1], turns[-1]["content"]
    return turns, None


def message(turn: Any, field: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(field, "a turn must be an object with role and content")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(field, f"unknown role {role!r}; known: {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": text(turn.get("content", turn.get("value")), field)}


def system(row: dict[str, Any]) -> list[Message]:
    """The system message that stands in a column of its own."""
    return [
        {"role": "system", "content": text(row[column], column)} for column in SYSTEM if not empty(row.get(column))
    ]


def earlier(row: dict[str, Any]) -> list[Message]:
    """What came before the request: a system message, and Alpaca's `history` of requests with their answers."""
    history = [] if empty(row.get("history")) else row["history"]
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history", "must be a list of pairs: a request and its answer")
    said = [text(turn, "history") for pair in history for turn in pair]
    return system(row) + [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(said)]


def answer(row: dict[str, Any], field: str) -> list[Message]:
    if field not in row:
        return []
    return [{"role": "assistant", "content": text(row[field], field)}]


def listing(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise BadRow(field, "must be a list of turns")
    return value


def text(value: Any, field: str) -> str:
    """A string with something in it; typed parts are joined where all are text."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        parts = [part.get("text", part.get("value")) for part in value]
        value = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, is {type(value).__name__}")
    if not value.strip():
        raise BadRow(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(field, "holds half a surrogate pair, which no encoding can store") from None
    return value
