"""Training weights, of a row or of its turns: which answers are learnt from. A turn is trained or it is not: the loss
is a mean over tokens that all count alike, so a weight between 0 and 1 is refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from stages.formats.columns import WEIGHTS, ChangesMeaning
from stages.formats.turns import ROLES, WHO, empty, listed, said, spoken_turns
from stages.store.records import Message

FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def flag(value: Any, column: str) -> bool:
    """Whether a weight has its turn trained.

    Raises:
        ChangesMeaning: where it is neither 0 nor 1.
    """
    if (found := FLAGS.get(str(value).lower())) is None:
        raise ChangesMeaning(column, f"is {value!r:.40}, and of weights only 0 and 1 are read")
    return found


def of_turns(given: Any, column: str, dropped: Collection[str] = ()) -> list[bool]:
    """Whether each assistant turn of a list is trained, by the weights that it has."""
    turns = spoken_turns(listed(given, column)) if isinstance(given, list) or str(given).lstrip()[:1] == "[" else []
    return [
        all(
            flag(value, f"{column}.{key}")
            for key, value in turn.items()
            if key in WEIGHTS and key not in dropped and not empty(value)
        )
        for turn in turns
        if isinstance(turn, dict) and ROLES.get(str(said(turn, WHO)).lower()) == "assistant"
    ]


def of_row(
    row: Mapping[str, Any], turns: list[Message], dropped: Collection[str], answered: bool
) -> list[bool] | None:
    """Whether each assistant turn of a conversation is trained, by its row's weight and those of its `messages`, which
    come last in it; None where all are. `answered`: another one comes after these turns."""
    if "messages" not in row and "weight" not in row:
        return None
    count = sum(turn["role"] == "assistant" for turn in turns) + answered
    own = of_turns(row["messages"], "messages", dropped) if "messages" in row else []
    own += [True] * (answered and "completion" in row)  # beside messages that end with a request
    found = [True] * (count - len(own)) + own
    if "weight" in row and not flag(row["weight"], "weight"):
        found = [False] * count
    return None if all(found) else found
