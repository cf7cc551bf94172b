"""The format of a file, told from its first rows.

`known.yaml` lists widely used sets whose columns do not say by their names what they are, or not rightly, with what
`columns` and `labels` would say of them. A set more is an entry more there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.formats.column_mapping import (
    FORMATS,
    ColumnMapping,
    Wanted,
    getters_of,
    kinds,
    laid_out,
    name_of,
    values_of,
)
from stages.formats.columns import ChangesMeaning, unread
from stages.formats.readers.files import Table
from stages.formats.readers.row import validate_columns
from stages.formats.refusal_messages import (
    dotted,
    refuse_judged,
    refuse_options,
    refuse_rivals,
    refuse_unanswered,
    unknown,
)
from stages.formats.texts import Texts
from stages.formats.turns import empty

FILE = Path(__file__).with_name("known.yaml")
PEEKED = 200  # rows


def layout_of(table: Table, source: Source, key: str, wanted: Wanted) -> ColumnMapping | None:
    """The layout of a file, for preferences or for examples, whose format has looked at the rows that it learns from;
    None where the file has no row that can be read.

    Raises:
        UserError: as `recognised`, and where the rows do not go together.
    """
    rows = peeked(table)
    layout = recognised(table, rows, source, key, wanted)
    if layout and not layout.asks:
        learn(table, layout, rows, f"{key.rpartition('.')[0]}.labels")
    return layout


def peeked(table: Table) -> list[dict[str, Any]]:
    """The first rows of a file, without those that cannot be read."""
    rows = list[dict[str, Any]]()
    for row in islice(table.rows(), PEEKED):
        if not row.error and isinstance(row.value, dict):
            validate_columns(table.name, row.value)
            rows.append(row.value)
    return rows


def recognised(
    table: Table, rows: list[dict[str, Any]], source: Source, key: str, wanted: Wanted
) -> ColumnMapping | None:
    """The layout of a file by its first rows alone; None where there are none.

    Raises:
        UserError: where it has no format of ours, naming its columns and the setting that would say what they are; and
            where it may be read in several ways.
    """
    block, _, _ = key.rpartition(".")
    if not kinds(source, wanted):
        known = ", ".join(map(name_of, FORMATS[wanted]))
        raise UserError(f"{block}.format={source.format}: here are read {wanted}; the formats of that are {known}.")
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row if not empty(row[column])))
    layout = best(source, wanted, columns, rows)
    if wanted in (Wanted.answers, Wanted.prompts):
        refuse_options(table, source, block, columns, rows)
    if layout is None:
        raise unknown(table, source, block, columns, rows, wanted)
    if wanted is Wanted.answers:
        refuse_unanswered(table, layout, source, block, columns, rows[0])
        refuse_judged(table, layout, source, block, columns, rows)
    refuse_rivals(table, layout, block, columns, rows)
    layout.asks = (
        wanted is Wanted.prompts and layout.format.compares and bool({"prompt", "messages"} & {*layout.first})
    )
    return layout


def best(source: Source, wanted: Wanted, columns: list[str], rows: list[dict[str, Any]]) -> ColumnMapping | None:
    """The layout of the first format that most of these rows are of, or else of the one that the most are of; by what
    is known of the set, or else by the names of its columns."""
    most, found = 0, None
    known = with_known(source, {column for row in rows for column in row})
    for told, kind in [(known, kind) for kind in kinds(known, wanted)] + [
        (source, kind) for kind in kinds(source, wanted)
    ]:
        layout = laid_out(kind(told), columns, told.columns)
        usable = sum(fits(layout, row) for row in rows)
        if usable > most:
            most, found = usable, layout
        if 2 * usable >= len(rows):
            break
    if found:
        found.unfound = dotted(source)
    return found


def fits(layout: ColumnMapping, row: dict[str, Any]) -> bool:
    """Whether a row is of this format: it has what is needed, and no column that would mean something else."""
    unknown = {role for role, path in layout.given.items() if path is not None} - layout.first.keys()
    values = values_of(row, getters_of(layout.first, row))
    if unknown or not values.keys() >= {*layout.format.needs} or not layout.format.fits(values):
        return False
    columns = layout.columns(row)
    try:
        unread(row, values_of(row, columns.getters), columns.beside)
    except ChangesMeaning:
        return not isinstance(layout.format, Texts)  # else it is told by name
    return True


def learn(table: Table, layout: ColumnMapping, rows: list[dict[str, Any]], labels: str) -> None:
    """Have a format look at a file's rows before it reads them."""
    seen = (row.value for row in table.rows() if isinstance(row.value, dict)) if layout.format.learns_all else rows
    values = (values_of(row, layout.columns(row).getters) for row in seen)
    try:
        layout.format.learn((v for v in values if v.keys() >= {*layout.format.needs}), layout.first, labels)
    except UserError as error:
        raise UserError(f"{table.name}: {error}") from error


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
