"""Recognise the format of a file from its first rows.

`detection.yaml` lists known data sets whose column names do not say what the columns hold, or say it wrongly. Each
entry there gives the `columns` and `labels` that a user would otherwise have to type."""

from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, begin_errors
from stages.config.installation import read_beside
from stages.config.override_text import override
from stages.formats import refusal_messages as refusals
from stages.formats.column_mapping import (
    FORMATS,
    ColumnMapping,
    Purpose,
    allowed_formats,
    build_mapping,
    format_name,
)
from stages.formats.columns import list_unread
from stages.formats.prompts import Prompts
from stages.formats.readers.files import Table
from stages.formats.readers.row import BadRow, ChangesMeaning, validate_columns
from stages.formats.texts import Texts
from stages.formats.turns import is_empty

PEEKED = 200  # rows
SINGLE_ANSWERS = ("completion", "chosen", "rejected")
MOST_LABELS = 10  # answers of more different numbers are no labels


def detect_mapping(
    table: Table, source: Source, key: str, purpose: Purpose
) -> ColumnMapping | None:
    """Return a file's format and its columns by role; None if no row can be read. The format has learnt from the rows.
    Raise UserError, as `recognise_format`; also if the format finds that the rows contradict each other."""
    rows = first_rows(table)
    mapping = recognise_format(table, rows, source, key, purpose)
    if mapping and not mapping.prompts_only:
        learn_from_rows(table, mapping, rows, f"{key.rpartition('.')[0]}.labels")
    return mapping


def first_rows(table: Table) -> list[dict[str, Any]]:
    """Return the readable rows among the first `PEEKED` rows of a file."""
    rows = list[dict[str, Any]]()
    for row in islice(table.rows(), PEEKED):
        if not row.error and isinstance(row.value, dict):
            validate_columns(table.name, row.value)
            rows.append(row.value)
    return rows


def recognise_format(
    table: Table, rows: list[dict[str, Any]], source: Source, key: str, purpose: Purpose
) -> ColumnMapping | None:
    """Return a file's format and its columns by role, from the first rows alone; None if there are no rows.
    Raise UserError if no format fits, or several readings do. The message has the columns, and a setting to type."""
    block, _, _ = key.rpartition(".")
    if not allowed_formats(source, purpose):
        names = ", ".join(dict.fromkeys(map(format_name, FORMATS[purpose])))
        raise UserError(
            f"{block}.format={source.format}: this format does not hold {purpose}. Type {override(f'{block}.format', None)} to "
            f"detect the format, or one of {names}."
        )
    if not rows:
        return None
    columns = list(
        dict.fromkeys(column for row in rows for column in row if not is_empty(row[column]))
    )
    mapping = best_mapping(source, purpose, columns, rows)
    head = refusals.FileHead(table.name, source, block, columns, rows, purpose)
    if purpose in (Purpose.answers, Purpose.prompts):
        refusals.refuse_options(head)
    if mapping is None:
        raise refusals.unknown_format_error(head)
    if purpose is Purpose.answers:
        if not (source.answered_later and isinstance(mapping.format, Prompts)):
            refusals.refuse_unanswered(head, mapping)
        refusals.refuse_judged(head, mapping)
    if purpose is Purpose.preferences:
        refusals.refuse_unscored(head, mapping)
    refusals.refuse_rivals(head, mapping)
    has_prompt = bool({"prompt", "messages"} & {*mapping.first_paths})
    mapping.prompts_only = purpose is Purpose.prompts and mapping.format.compares and has_prompt
    return mapping


def best_mapping(
    source: Source, purpose: Purpose, columns: list[str], rows: list[dict[str, Any]]
) -> ColumnMapping | None:
    """Return the first format that fits at least half of the rows, else the one that fits most; None if none fits.
    Formats with the columns from `detection.yaml` are tried first, then formats by the names of the columns."""
    most_rows, best = 0, None
    known_source = with_known_columns(source, {column for row in rows for column in row})
    candidates = [
        (each, kind) for each in (known_source, source) for kind in allowed_formats(each, purpose)
    ]
    for candidate, kind in candidates:
        form = kind(candidate)
        form.turns.answered = purpose is not Purpose.prompts
        mapping = build_mapping(form, columns, candidate.columns)
        usable = sum(fits_row(mapping, row) for row in rows)
        if usable > most_rows:
            most_rows, best = usable, mapping
        if 2 * usable >= len(rows):
            break
    if best:
        best.missing_paths = refusals.user_paths(source)
    return best


def fits_row(mapping: ColumnMapping, row: dict[str, Any]) -> bool:
    """Return True if a row has the roles that the format needs, and no column that changes what running text is."""
    unresolved = {
        role for role, path in mapping.user_columns.items() if path is not None
    } - mapping.first_paths.keys()
    columns = mapping.find_columns(row)
    values = mapping.values(row).values
    if unresolved or not values.keys() >= {*mapping.format.needs}:
        return False
    try:
        if not mapping.format.fits(values):
            return False
        list_unread(row, columns.unread)
    except BadRow:
        return True  # `read` raises the error for its row
    except ChangesMeaning:
        # in other formats, `read` raises the error for its row
        return not isinstance(mapping.format, Texts)
    return True


def learn_from_rows(
    table: Table, mapping: ColumnMapping, rows: list[dict[str, Any]], labels: str
) -> None:
    """Let the format look at the first rows, or at all rows, before it parses any."""
    form = mapping.format
    numbers = number_answers(mapping, rows)
    form.numbers |= len(numbers) > MOST_LABELS
    form.number_words = sorted({str(number).lower() for number in numbers})
    seen = (
        (row.value for row in table.rows() if isinstance(row.value, dict))
        if form.learns_all
        else rows
    )
    values = (mapping.values(row).values for row in seen)
    with begin_errors(table.name):
        form.learn(
            (value for value in values if value.keys() >= {*form.needs}),
            mapping.first_paths,
            labels,
        )


def number_answers(mapping: ColumnMapping, rows: list[dict[str, Any]]) -> set[int | float | bool]:
    """Return the different answers that are numbers, true or false. More values than labels would have are numbers."""
    values = [mapping.values(row).values for row in rows]
    answers = [row.get(role) for row in values for role in SINGLE_ANSWERS]
    return {answer for answer in answers if isinstance(answer, int | float)}


KNOWN: list[dict[str, Any]] = read_beside(__file__)


def with_known_columns(source: Source, columns: Collection[str]) -> Source:
    """Return the source with `columns` and `labels` from `detection.yaml`, unless the user named roles or a task."""
    dropped = {column for column, path in source.columns.items() if path is None}
    if source.task or {*source.columns} - dropped:
        return source
    for dataset in KNOWN:
        if {*dataset["of"]} <= {*columns} - dropped and not (
            dataset.get("alone") and {*columns} - {*dataset["of"]}
        ):
            merged = {**dataset["columns"], **source.columns}
            return replace(
                source, columns=merged, labels={**dataset.get("labels", {}), **source.labels}
            )
    return source
