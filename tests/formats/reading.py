"""Rows given to the door, and what it takes them to say."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Source
from stages.formats.column_mapping import Wanted
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Row
from stages.formats.source_reading import ReadReport, convert

KEY = "data.sources[0].path"


@dataclass
class Read:
    """What rows say, and what else there was."""

    made: list[ParsedRow]
    rows: int
    at: tuple[str, int]
    bad: list[Row]
    left_out: int
    unwanted: Counter[str]
    apart: list[Row]
    unused: dict[str, None]
    told: list[str]


def read(path: Path, wanted: Wanted = Wanted.answers, **source: Any) -> Read:
    source = {key: value for key, value in source.items() if value is not None}
    found = ReadReport()
    made = list(convert(Source(str(path), **source), KEY, lambda said: said, wanted, found))
    assert found.made == len(made)
    return Read(made, **vars(found))


def lines(folder: Path, rows: list[Any]) -> Path:
    """A file with these rows, one a line."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def said(found: Read) -> list[tuple[list[str], list[str], list[float] | None]]:
    """What every row says: contents of its messages, answers, scores."""
    return [([turn["content"] for turn in each.messages], each.answers, each.scores) for each in found.made]
