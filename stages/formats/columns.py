"""What becomes of the columns of a row, and of the keys of a turn.

Some are read (`READ`). Of the others one that changes what the row means is refused by name, until it can be used;
another is named once for its source.
"""

from collections.abc import Collection, Iterator
from typing import Any

from stages.config.errors import UserError

SYSTEM = ("system", "system_prompt")
# A row is read by the first of these columns that it has, and by those beside it.
READ = {
    "messages": SYSTEM,
    "conversations": SYSTEM,
    "instruction": ("input", "output", "history", *SYSTEM),
    "prompt": ("completion", "history", *SYSTEM),
    "text": (),
}
TURN = ("role", "from", "content", "value")
TURNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")

# How much a row or a turn counts. One that says what is done anyway is no matter: every answer counts once.
WEIGHTS = {"loss_weight", "sample_weight", "weight", "train"}
CHANGING = {
    # whether the answer is a good one
    "label", "labels", "kto_tag", "feedback",
    # what the model was asked
    "input", "context", "documents", "history", *SYSTEM,
    "image", "images", "video", "videos", "audio", "audios",
    # what it could do, and did before it answered
    "tools", "functions", "tool_calls", "function_call", "tool_call_id", "chat_template_kwargs",
    "reasoning", "reasoning_content", "thinking",
}  # fmt: skip
# In a turn, who speaks; beside plain text, a word in the name of what is asked about it: then it is no running text.
OF_A_TURN = {"name"}
OF_A_TEXT = {
    "label", "labels", "class", "classes", "category", "intent", "sentiment", "polarity", "emotion", "topic",
    "target", "stars", "rating", "question", "answer", "response", "output", "completion", "summary",
}  # fmt: skip


class ChangesMeaning(UserError):
    """A column that would change what a row means, and that nothing can use yet."""

    def __init__(self, column: str):
        super().__init__(f"the column {column!r} changes what a row means, and is not used yet")


def unused(row: Any, *read: str) -> list[str]:
    """The columns with something in them that are read neither by the row's format nor as one of `read`.

    Raises:
        ChangesMeaning: where one of them changes what the row means.
    """
    if not isinstance(row, dict):
        return []
    kind = next((column for column in READ if column in row), None)
    if kind is None and not read:
        return []  # no format of ours
    known = {*read, kind, *(READ[kind] if kind else ())}
    found = list(left(row, known, 1))
    for column in found:
        name = column.lower()
        if name in CHANGING | WEIGHTS or (kind == "text" and OF_A_TEXT & set(name.split("_"))):
            raise ChangesMeaning(column)
    return found + [f"{field}.{key}" for field in TURNS if field in known for key in of_turns(row.get(field), field)]


def of_turns(turns: Any, field: str) -> list[str]:
    """The keys that nothing reads, of the turns of a conversation or of one turn.

    Raises:
        ChangesMeaning: as `unused`.
    """
    found = dict[str, None]()
    for turn in turns if isinstance(turns, list) else [turns]:
        if isinstance(turn, dict):
            answers = turn.get("role", turn.get("from")) in ("assistant", "gpt")
            for key in left(turn, TURN, int(answers)):
                if key.lower() in CHANGING | WEIGHTS | OF_A_TURN:
                    raise ChangesMeaning(f"{field}.{key}")
                found[key] = None
    return list(found)


def left(values: dict[Any, Any], known: Collection[str | None], weight: int) -> Iterator[str]:
    """The keys beside the known ones that say something: the usual weight says nothing."""
    for key, value in values.items():
        if key not in known and not empty(value) and not (str(key).lower() in WEIGHTS and value == weight):
            yield str(key)


def empty(value: Any) -> bool:
    """Whether a column says nothing in this row: null, white space, an empty list or object, these as JSON too. Zero
    and false are values."""
    return value in (None, [], {}) or (isinstance(value, str) and value.strip() in ("", "[]", "{}"))
