"""`data.own`: task families of the user's, or a function that says what a row says."""

import inspect
from collections.abc import Callable
from typing import Any

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.formats.format import Said
from stages.formats.user_function import reader
from stages.store import plugins
from stages.store.workspace import Work
from stages.tasks.generate import Family, apart

KEY = "data.own"


def own_part(own: Own, out: Work) -> tuple[dict[str, Family], Callable[[Any], Said] | None]:
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
