"""Bounds on YAML that others wrote: in bytes, in depth, and in what its aliases stand for.

A few lines of aliases can stand for billions of values. Parsing them is quick, and every copy of them is not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.config.installation import YAML_LOADER, parse_yaml

MOST_BYTES = 1 << 20  # the longest known files have a few thousand
DEEPEST = 50
MOST_VALUES = 100_000  # with those that aliases stand for
LONGEST_KEY = 1_000  # characters


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file. Raise YAMLError if it is beyond the bounds, no YAML, or no regular file."""
    if path.exists() and not path.is_file():
        raise yaml.YAMLError("this is not a regular file")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise yaml.YAMLError(f"{size:,} bytes are too many for settings, at most {MOST_BYTES:,}")
    text = path.read_text(encoding="utf-8")
    require_bounded(text)
    return text


def parse_bounded(text: str, may_alias: bool = True) -> Any:
    """Return the content of a YAML text. Raise YAMLError if it is beyond the bounds. `may_alias`: it may have aliases."""
    require_bounded(text, may_alias)
    return parse_yaml(text)


def require_bounded(text: str, may_alias: bool = True) -> None:
    """Raise YAMLError, with the line, for YAML beyond the bounds. `may_alias`: it may have aliases."""
    counted = CountedValues(may_alias)
    for event in yaml.parse(text, YAML_LOADER):
        problem = counted.problem_with(event)
        if problem:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: {problem}")


@dataclass
class Collection:
    """A list or mapping that is being read: its anchor, and the number of values in it so far."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    parts: int = 0  # of a mapping: keys and values in turn


class CountedValues:
    """The values of the YAML that has been read, each alias counted as what it stands for."""

    def __init__(self, may_alias: bool):
        self.may_alias = may_alias
        self.around = [Collection(None, is_mapping=False)]  # the first stands for all documents
        self.by_anchor = dict[str, int]()

    def problem_with(self, event: yaml.Event) -> str | None:
        """Count the values that an event of the parser adds. Return the bound that it breaks, or None."""
        match event:
            case yaml.CollectionStartEvent():
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                self.around.append(Collection(event.anchor, is_mapping))
                if len(self.around) > DEEPEST:
                    return f"more than {DEEPEST} levels are in each other"
            case yaml.CollectionEndEvent():
                ended = self.around.pop()
                return self.add(ended.values, ended.anchor)
            case yaml.ScalarEvent(value=text, anchor=anchor):
                is_key = self.around[-1].is_mapping and self.around[-1].parts % 2 == 0
                if is_key and len(text) > LONGEST_KEY:
                    return f"a key has {len(text):,} characters"
                return self.add(1, anchor)
            case yaml.AliasEvent(anchor=name):
                if not self.may_alias:
                    return f"an alias, *{name}: write the text out"
                if name not in self.by_anchor:
                    return f"an alias, *{name}, of no value before it"
                return self.add(self.by_anchor[name], None)
        return None

    def add(self, values: int, anchor: str | None) -> str | None:
        """Add values, those of an anchor if it has a name. Return the bound that they break, or None."""
        collection = self.around[-1]
        collection.values += values
        collection.parts += 1
        if anchor:
            self.by_anchor[anchor] = values
        if collection.values > MOST_VALUES:
            return f"with its aliases this has over {MOST_VALUES:,} values"
        return None
