"""Refuse values that OmegaConf would convert to something else without a word.

It reads `-7` as true, digits of any script as a number, and `1_0` as 10. A text that looks like a number, such as a
commit `1e7`, reaches it as that number."""

import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from stages.cli.settings import Setting, all_settings, parts_of, settings_of
from stages.config.errors import UserError

NUMBERS = {int, float}
WORD_BREAKS = re.compile(r"[\s,\[\]'\"]+")


def validate_spelling(key: str, value: str) -> None:
    """Raise UserError for a number that is typed with other characters than those of ASCII numbers."""
    setting = all_settings().get(key)
    if setting is None or NUMBERS.isdisjoint(types_of(setting)):
        return
    for word in WORD_BREAKS.split(value):
        require_plain_number(key, word)


def validate_types(key: str, value: Any) -> None:
    """Raise UserError for the first value, in a block, list or mapping, that would become another one."""
    setting = settings_with_items().get(key)
    for inner_key, inner_value in values_inside(key, value, setting):
        validate_types(inner_key, inner_value)
    if setting is None:
        return
    types = types_of(setting)
    if isinstance(value, str) and types & NUMBERS:
        require_plain_number(key, value)
    is_number = type(value) in NUMBERS or (isinstance(value, str) and as_number(value) is not None)
    if bool in types and is_number and not types & NUMBERS and str(value) not in ("0", "1"):
        problem = f"{key}={value}: a number is neither true nor false"
        raise UserError(f"{problem}. Type {key}=true or {key}=false.")


def values_inside(key: str, value: Any, setting: Setting | None) -> Iterator[tuple[str, Any]]:
    """Yield the values of a block, a list or a mapping by their keys; those of a list or a mapping by its own key."""
    has_any_names = setting is not None and typing.get_origin(setting.kind) is dict
    if isinstance(value, Mapping) and not has_any_names:
        yield from values_of_block(key, value)
        return
    items = list[Any]()
    if isinstance(value, list):
        items = value
    elif isinstance(value, Mapping):
        items = [*value.values()]
    for item in items:
        if isinstance(item, Mapping):
            yield from values_of_block(key, item)
        else:
            yield key, item


def values_of_block(key: str, block: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a block by their keys."""
    for name, value in block.items():
        yield f"{key}.{name}".lstrip("."), value


def require_plain_number(key: str, text: str) -> None:
    """Raise UserError for a number with underscores, or with digits of another script."""
    number = as_number(text)
    if number is not None and ("_" in text or not text.isascii()):
        raise UserError(
            f"{key}={text}: only the digits 0 to 9 make a number. Write it as {number:.15g}."
        )


def as_number(text: str) -> float | None:
    """Return the number that Python reads in a text, or None."""
    try:
        return float(text)
    except ValueError:
        return None


@cache
def settings_with_items() -> dict[str, Setting]:
    """Return the settings by key, with the keys of blocks in lists and mappings: `data.sources.rows`."""
    settings = dict(all_settings())
    for key, setting in all_settings().items():
        if hasattr(setting.items, "__dataclass_fields__"):
            settings |= {inner.key: inner for inner in settings_of(setting.items, f"{key}.")}
    return settings


def types_of(setting: Setting) -> set[Any]:
    """Return the types that a value, or the items of a list or mapping, may have."""
    return {*parts_of(setting.items or setting.kind)}
