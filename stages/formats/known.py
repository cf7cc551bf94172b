"""Sets whose columns do not say by their names what they are, or not rightly, and that are widely used: what `columns`
and `labels` would say of them. A set more is an entry more in `known.yaml`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.config.blocks.data import Source

FILE = Path(__file__).with_name("known.yaml")


@dataclass(frozen=True)
class Known:
    """A set: columns that it has, or with `alone` all of them; the columns of its roles, and words for its labels."""

    name: str
    of: list[str]
    columns: Mapping[str, Any]
    labels: Mapping[Any, str] = field(default_factory=dict)
    alone: bool = False


@cache
def known_sets() -> list[Known]:
    return [Known(**each) for each in yaml.safe_load(FILE.read_text(encoding="utf-8"))]


def with_known(source: Source, columns: Collection[str]) -> Source:
    """A source with what its columns tell of it, but for one of which the user says it: its roles, or its task."""
    dropped = {column for column, path in source.columns.items() if path is None}
    if source.task or {*source.columns} - dropped:
        return source
    for each in known_sets():
        if {*each.of} <= {*columns} - dropped and not (each.alone and {*columns} - {*each.of}):
            given = {**each.columns, **source.columns}
            return replace(source, columns=given, labels={**each.labels, **source.labels})
    return source
