"""The user's code of `data.own`: task families, or a function that parses a row."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.formats.format import ParsedRow, conversation_row
from stages.formats.turns import TURN_WEIGHTS, Turn, TurnReader, require_text
from stages.store import plugins
from stages.store.workspace import StageDir
from stages.tasks.generator import Family, collect_families

KEY = "data.own"


def load_user_code(
    own: Own, out: StageDir
) -> tuple[dict[str, Family], Callable[[Any], ParsedRow] | None]:
    """Return the user's task families, or function that parses a row. Raise UserError if `own` names neither."""
    if not own:
        return {}, None
    with collect_families() as families:
        loaded = plugins.run_file(own, KEY, out.path)
    if own.name in families or not callable(loaded):
        if own.options or own.name not in families:
            kinds = "a task family without data.own.options, or a function of a row"
            raise UserError(f"data.own.name={own.name} must be {kinds}.")
        return families, None
    plugins.require_options(own, KEY, inspect.signature(loaded), {})
    return {}, row_reader(loaded, own.options, str(own.name))


def row_reader(
    function: Callable[..., Any], options: Mapping[str, Any], name: str
) -> Callable[[Any], ParsedRow]:
    """Return a parser of rows that calls the user's function, which returns messages and an answer or None. Messages
    that end with an assistant turn contain their answer. Without messages, the answer is plain text."""

    def read_row(row: Any) -> ParsedRow:
        result = function(row, **options)
        turns, answer = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
        if not isinstance(turns, list):
            raise UserError(
                f"data.own: {name} must return (messages, answer or None), not {result!r:.80}."
            )
        if not turns:  # plain text
            return ParsedRow([], [require_text(answer, "")])
        # the function may leave any other key in a turn
        keys = {key for turn in turns if isinstance(turn, dict) for key in turn}
        reader = TurnReader(dropped=keys - TURN_WEIGHTS)
        whole = reader.read(turns, "messages", weighted=True)
        if answer is not None:
            whole.append(Turn("assistant", require_text(answer, "answer")))
        return conversation_row(reader.order(whole))

    return read_row
