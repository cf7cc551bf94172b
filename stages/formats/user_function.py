"""What a row says by a function of the user's own, in place of a format."""

from collections.abc import Callable, Mapping
from typing import Any

from stages.config.errors import UserError
from stages.formats.format import Said
from stages.formats.turns import message, split_off_answer, text
from stages.formats.weights import of_row


def reader(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> Callable[[Any], Said]:
    """What reads a row by a function that gives its messages and its answer, or None where it has none. Messages that
    end with an assistant turn have their answer in it; without any, the answer is running text."""

    def said(row: Any) -> Said:
        given = function(row, **options)
        turns, answer = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
        if not isinstance(turns, list):
            raise UserError(f"data.own: {name} must give (messages, answer or None), and gave {given!r:.80}.")
        if not turns:  # plain text
            return Said([], [text(answer, "")])
        last = [] if answer is None else [{"role": "assistant", "content": text(answer, "answer")}]
        whole = [message(turn, "messages") for turn in turns] + last
        messages, reply = split_off_answer(whole)
        trained = of_row({"messages": [*turns, *last]}, whole, (), answered=False)
        return Said(messages, [] if reply is None else [reply], trained=trained)

    return said
