"""Put the typed keys of one item, such as `data.sources[0].columns={…}`, into the typed list: Hydra knows no such key."""

import re
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from stages.config.errors import UserError
from stages.config.override_text import hydra_text

KEY_OF_ITEM = re.compile(r"([\w.]+)\[(\d+)\]\.([\w.]+)=(.*)", re.DOTALL)


def with_items_in_lists(line: list[str]) -> list[str]:
    """Return the command line with every key of one item in its typed list.
    Raise UserError if the list is not typed or has no such item, or if a value cannot be read."""
    matches = map(KEY_OF_ITEM.fullmatch, line)
    items = [match for match in matches if match]
    line = [argument for argument in line if not KEY_OF_ITEM.fullmatch(argument)]
    for item in items:
        key, place, path, value = item.groups()
        places = [i for i, argument in enumerate(line) if argument.startswith(f"{key}=")]
        values = read_value(line[places[-1]].partition("=")[2]) if places else None
        if not isinstance(values, list) or len(values) <= int(place):
            raise UserError(
                f"{item[0]}: this command types no {key} with such an item. Write it where the list is, or type all of "
                f"the list: '{key}=[{{path: FILE, {path}: {value}}}]'."
            )
        set_key(values[int(place)], path, read_value(value), item[0])
        line[places[-1]] = f"{key}={hydra_text(values)}"
    return line


def read_value(text: str) -> Any:
    """Return the value that Hydra reads in a text; None if it cannot read the text."""
    with suppress(HydraException):
        override = OverridesParser.create().parse_override(f"value={text}")
        if not override.is_sweep_override():
            return override.value()
    return None


def set_key(item: Any, path: str, value: Any, argument: str) -> None:
    """Set a key of an item, below blocks that it may lack. Entries join those that are there, as in a mapping."""
    *blocks, name = path.split(".")
    for block in blocks:
        item = item.setdefault(block, {}) if isinstance(item, dict) else None
    if not isinstance(item, dict):
        raise UserError(f"{argument}: this item has no keys. Type all of the list.")
    is_read_as_null = value is None and not argument.endswith("=null")
    if is_read_as_null:
        raise UserError(f"{argument}: cannot be read. Close all brackets, and put texts in quotes.")
    earlier = item.get(name)
    if isinstance(value, dict) and isinstance(earlier, dict):
        value = {**earlier, **value}
    item[name] = value
