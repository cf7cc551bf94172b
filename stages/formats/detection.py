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
    Purpose,
    allowed_formats,
    build_mapping,
    format_name,
    role_getters,
    role_values,
)
from stages.formats.columns import ChangesMeaning, list_unread
from stages.formats.readers.files import Table
from stages.formats.readers.row import validate_columns
from stages.formats.refusal_messages import (
    nested_user_paths,
    refuse_judged,
    refuse_options,
    refuse_rivals,
    refuse_unanswered,
    unknown_format_error,
)
from stages.formats.texts import Texts
from stages.formats.turns import is_empty

KNOWN_FILE = Path(__file__).with_name("known.yaml")
PEEKED = 200  # rows


def detect_mapping(table: Table, source: Source, key: str, purpose: Purpose) -> ColumnMapping | None:
    """The layout of a file, for preferences or for examples, whose format has looked at the rows that it learns from;
    None where the file has no row that can be read.

    Raises:
        UserError: as `recognised`, and where the rows do not go together.
    """
    rows = first_rows(table)
    mapping = recognise_format(table, rows, source, key, purpose)
    if mapping and not mapping.prompts_only:
        learn_from_rows(table, mapping, rows, f"{key.rpartition('.')[0]}.labels")
    return mapping


def first_rows(table: Table) -> list[dict[str, Any]]:
    """The first rows of a file, without those that cannot be read."""
    rows = list[dict[str, Any]]()
    for row in islice(table.rows(), PEEKED):
        if not row.error and isinstance(row.value, dict):
            validate_columns(table.name, row.value)
            rows.append(row.value)
    return rows


def recognise_format(
    table: Table, rows: list[dict[str, Any]], source: Source, key: str, purpose: Purpose
) -> ColumnMapping | None:
    """The layout of a file by its first rows alone; None where there are none.

    Raises:
        UserError: where it has no format of ours, naming its columns and the setting that would say what they are; and
            where it may be read in several ways.
    """
    block, _, _ = key.rpartition(".")
    if not allowed_formats(source, purpose):
        format_names = ", ".join(map(format_name, FORMATS[purpose]))
        raise UserError(
            f"{block}.format={source.format}: here are read {purpose}; the formats of that are {format_names}."
        )
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row if not is_empty(row[column])))
    mapping = best_mapping(source, purpose, columns, rows)
    if purpose in (Purpose.answers, Purpose.prompts):
        refuse_options(table, source, block, columns, rows)
    if mapping is None:
        raise unknown_format_error(table, source, block, columns, rows, purpose)
    if purpose is Purpose.answers:
        refuse_unanswered(table, mapping, source, block, columns, rows[0])
        refuse_judged(table, mapping, source, block, columns, rows)
    refuse_rivals(table, mapping, block, columns, rows)
    mapping.prompts_only = (
        purpose is Purpose.prompts
        and mapping.format.compares
        and bool({"prompt", "messages"} & {*mapping.first_paths})
    )
    return mapping


def best_mapping(
    source: Source, purpose: Purpose, columns: list[str], rows: list[dict[str, Any]]
) -> ColumnMapping | None:
    """The layout of the first format that most of these rows are of, or else of the one that the most are of; by what
    is known of the set, or else by the names of its columns."""
    most_rows, best = 0, None
    known_source = with_known_columns(source, {column for row in rows for column in row})
    for candidate, kind in [(known_source, kind) for kind in allowed_formats(known_source, purpose)] + [
        (source, kind) for kind in allowed_formats(source, purpose)
    ]:
        mapping = build_mapping(kind(candidate), columns, candidate.columns)
        usable = sum(fits_row(mapping, row) for row in rows)
        if usable > most_rows:
            most_rows, best = usable, mapping
        if 2 * usable >= len(rows):
            break
    if best:
        best.missing_paths = nested_user_paths(source)
    return best


def fits_row(mapping: ColumnMapping, row: dict[str, Any]) -> bool:
    """Whether a row is of this format: it has what is needed, and no column that would mean something else."""
    unresolved = {role for role, path in mapping.user_columns.items() if path is not None} - mapping.first_paths.keys()
    values = role_values(row, role_getters(mapping.first_paths, row))
    if unresolved or not values.keys() >= {*mapping.format.needs} or not mapping.format.fits(values):
        return False
    columns = mapping.find_columns(row)
    try:
        list_unread(row, role_values(row, columns.getters), columns.unread)
    except ChangesMeaning:
        return not isinstance(mapping.format, Texts)  # else it is told by name
    return True


def learn_from_rows(table: Table, mapping: ColumnMapping, rows: list[dict[str, Any]], labels: str) -> None:
    """Have a format look at a file's rows before it reads them."""
    seen = (row.value for row in table.rows() if isinstance(row.value, dict)) if mapping.format.learns_all else rows
    values = (role_values(row, mapping.find_columns(row).getters) for row in seen)
    try:
        mapping.format.learn((v for v in values if v.keys() >= {*mapping.format.needs}), mapping.first_paths, labels)
    except UserError as error:
        raise UserError(f"{table.name}: {error}") from error


@dataclass(frozen=True)
class KnownDataset:
    """A set: columns that it has, or with `alone` all of them; the columns of its roles, and words for its labels."""

    name: str
    of: list[str]
    columns: Mapping[str, Any]
    labels: Mapping[Any, str] = field(default_factory=dict)
    alone: bool = False


@cache
def known_datasets() -> list[KnownDataset]:
    return [KnownDataset(**entry) for entry in yaml.safe_load(KNOWN_FILE.read_text(encoding="utf-8"))]


def with_known_columns(source: Source, columns: Collection[str]) -> Source:
    """A source with what its columns tell of it, but for one of which the user says it: its roles, or its task."""
    dropped = {column for column, path in source.columns.items() if path is None}
    if source.task or {*source.columns} - dropped:
        return source
    for dataset in known_datasets():
        if {*dataset.of} <= {*columns} - dropped and not (dataset.alone and {*columns} - {*dataset.of}):
            merged = {**dataset.columns, **source.columns}
            return replace(source, columns=merged, labels={**dataset.labels, **source.labels})
    return source
