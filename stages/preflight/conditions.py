"""Conditions under which settings are refused. Their messages are in the YAML file beside a module, by name."""

from collections.abc import Mapping

from stages.config.errors import UserError
from stages.config.installation import read_beside


def refuse(module: str, conditions: Mapping[str, object], **words: object) -> None:
    """Raise UserError with the message of the first condition that holds. `words`: what stands in braces there."""
    for name, holds in conditions.items():
        message = read_beside(module)[name]
        if holds:
            raise UserError(message.format(**words))
