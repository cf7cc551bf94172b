"""Read test files with the readers of stages/formats."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.data import Source
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Row
from stages.formats.source_reading import ReadReport, convert
from stages.store.user_columns import KeptColumns

KEY = "data.sources[0].path"


@dataclass
class ReadResult:
    """The parsed rows of a file, and the fields of the ReadReport."""

    parsed: list[ParsedRow]
    rows: int
    files: int
    position: tuple[str, int]
    bad_rows: list[Row]
    left_out: int
    unwanted: Counter[str]
    flagged_rows: list[Row]
    unused_columns: dict[str, None]
    kept: KeptColumns
    notes: list[str]


def read(path: Path, purpose: Purpose = Purpose.answers, **source: Any) -> ReadResult:
    source = {key: value for key, value in source.items() if value is not None}
    report = ReadReport()
    parsed = list(convert(Source(str(path), **source), KEY, lambda row: row, purpose, report))
    assert report.usable == len(parsed)
    return ReadResult(parsed, **vars(report))


def lines(folder: Path, rows: list[Any]) -> Path:
    """Write rows to a JSON lines file, and return its path."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def summarize(result: ReadResult) -> list[tuple[list[str], list[str], list[float] | None]]:
    """Return the contents of the messages, the answers and the scores of each row."""
    return [
        ([turn["content"] for turn in row.messages], row.answers, row.scores)
        for row in result.parsed
    ]
