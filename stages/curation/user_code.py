"""`data.own`: task families of the user's, or a function that says what a row says."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.formats.format import ParsedRow, trained_by_weights
from stages.formats.turns import message, split_off_answer, text
from stages.store import plugins
from stages.store.workspace import StageDir
from stages.tasks.generator import Family, apart

KEY = "data.own"


def own_part(own: Own, out: StageDir) -> tuple[dict[str, Family], Callable[[Any], ParsedRow] | None]:
    """The user's task families, or the function of the user's that says what a row says, as `own` names one.

    Raises:
        UserError: where it names neither.
    """
    if not own:
        return {}, None
    with apart() as families:
        found = plugins.load(own, KEY, out.path)
    if own.name in families or not callable(found):
        if own.options or own.name not in families:
            raise UserError(
                f"data.own.name={own.name} must be a task family, without options, or a function of a row."
            )
        return families, None
    plugins.fitting(own, KEY, inspect.signature(found), {})
    return {}, reader(found, own.options, str(own.name))


def reader(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> Callable[[Any], ParsedRow]:
    """What reads a row by a function that gives its messages and its answer, or None where it has none. Messages that
    end with an assistant turn have their answer in it; without any, the answer is running text."""

    def said(row: Any) -> ParsedRow:
        given = function(row, **options)
        turns, answer = given if isinstance(given, tuple) and len(given) == 2 else (None, None)
        if not isinstance(turns, list):
            raise UserError(f"data.own: {name} must give (messages, answer or None), and gave {given!r:.80}.")
        if not turns:  # plain text
            return ParsedRow([], [text(answer, "")])
        last = [] if answer is None else [{"role": "assistant", "content": text(answer, "answer")}]
        whole = [message(turn, "messages") for turn in turns] + last
        messages, reply = split_off_answer(whole)
        trained = trained_by_weights({"messages": [*turns, *last]}, whole, (), answered=False)
        return ParsedRow(messages, [] if reply is None else [reply], trained=trained)

    return said
