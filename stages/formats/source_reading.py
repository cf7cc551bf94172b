"""Read the rows of a source, report on them, and write rows that cannot be used to `quarantine.jsonl`."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeVar

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.formats.column_mapping import ColumnMapping, Purpose
from stages.formats.detection import detect_mapping, first_rows
from stages.formats.format import ParsedRow
from stages.formats.readers.files import Table, source_tables
from stages.formats.readers.row import BadRow, ChangesMeaning, Row, Unwanted, Way, typed_ways
from stages.formats.refusal_messages import (
    missing_path_error,
    shortlist,
)
from stages.formats.turns import is_empty
from stages.store import plugins
from stages.store.licences import data_licence
from stages.store.user_columns import KeptColumns
from stages.store.workspace import Progress, StageDir

Record = TypeVar("Record")
PROGRESS_EVERY = 1000  # rows
MAX_NAMED = 20  # columns, in a warning
MAX_SHOWN = 100  # characters of a turn
MAX_NOTED = 9  # files of a source whose first row is shown


@dataclass
class ReadReport:
    """The counts and notes of reading a source."""

    rows: int = 0
    files: int = 0  # with usable rows
    position: tuple[str, int] = ("", 0)  # file and line of the last row
    bad_rows: list[Row] = field(default_factory=list)  # rows that cannot be used
    left_out: int = 0  # rows for which the caller has no use
    # rows that data.audit takes out, by its codes
    unwanted: Counter[str] = field(default_factory=Counter)
    # the unwanted rows that go to the quarantine
    flagged_rows: list[Row] = field(default_factory=list)
    unused_columns: dict[str, None] = field(default_factory=dict)
    kept: KeptColumns = field(default_factory=KeptColumns)  # of the records
    notes: list[str] = field(default_factory=list)  # for the user: how each file was read

    @property
    def place(self) -> str:
        """The last row's file and line as FILE:LINE."""
        file, line = self.position
        return f"{file}:{line}"

    @property
    def usable(self) -> int:
        return self.rows - len(self.bad_rows) - self.left_out - self.unwanted.total()


def convert(
    source: Source,
    key: str,
    convert_row: Callable[[ParsedRow], Record | None],
    purpose: Purpose,
    report: ReadReport,
    user_reader: Callable[[Any], ParsedRow] | None = None,
) -> Iterator[Record]:
    """Yield a record for each row of a source: `convert_row` applied to the row as its format, or the user, parses it.
    If `convert_row` returns None, the row is left out. If it raises BadRow, the row is unusable. `report` is filled
    while rows are read. A row that states no licence has the one of the source, or of the folder's card.
    Raise UserError if the source has no rows, a file holds something else than `purpose` needs, a column changes what
    a row means, or no row has a column that `columns` names."""
    tables = [*source_tables(source, key, purpose is Purpose.preferences)]
    licence = source.licence or data_licence(plugins.user_path(source.path))

    def convert_licensed(row: ParsedRow) -> Record | None:
        return convert_row(row._replace(licence=licence) if licence and not row.licence else row)

    missing_paths: set[tuple[str, str]] | None = (
        None  # (role, path) of the user's, in no file so far
    )
    with Progress(0, f"reading {key.removesuffix('.path')}", "row") as progress:
        for table in tables:
            mapping = detect_mapping(table, source, key, purpose) if user_reader is None else None
            read = mapping.read if mapping else user_reader or refuse_row
            for record in convert_table(table, read, mapping, convert_licensed, report, key):
                if report.rows - progress.done >= PROGRESS_EVERY:
                    progress.update(report.rows - progress.done)
                yield record
            if mapping:
                earlier = mapping.missing_paths if missing_paths is None else missing_paths
                missing_paths = earlier & mapping.missing_paths
    if report.files > MAX_NOTED:
        report.notes.append(f"{source.path}: {report.files - MAX_NOTED:,} more files were read")
    if not report.rows:
        raise UserError(
            f"{key}={source.path}: holds no rows, and no setting finds any. Type the path of a file with rows."
        )
    # Any row of JSON lines may be the first with a column, so missing columns are known only now.
    if missing_paths:
        block = key.rpartition(".")[0]
        raise missing_path_error(missing_paths, block, source.path, first_rows(tables[0]))


def refuse_row(row: Any) -> ParsedRow:
    """Raise BadRow for a row of a file that has no readable row, and so no format."""
    raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")


def convert_table(
    table: Table,
    read: Callable[[Any], ParsedRow],
    mapping: ColumnMapping | None,
    convert_row: Callable[[ParsedRow], Record | None],
    report: ReadReport,
    key: str,
) -> Iterator[Record]:
    """Yield the records of a file's rows, as `convert` does."""
    rows_before, example = report.rows, None
    for row in table.rows():
        report.rows += 1
        report.position = row.file, row.line
        try:
            if row.error:
                raise row.error
            parsed = read(row.value)
            record = convert_row(parsed)
        except UserError as error:
            hint = column_hint(key, error) if isinstance(error, ChangesMeaning) else ""
            raise UserError(f"{row.place}: {error}{hint}") from error
        except Unwanted as reason:
            row.error = reason
            report.unwanted[reason.field] += 1
            report.flagged_rows += [row] if reason.quarantined else []
            continue
        except BadRow as reason:
            row.error = reason.typed(key.rpartition(".")[0])
            report.bad_rows.append(row)
            continue
        if example is None or (is_tie(example) and not is_tie(parsed)):
            example = parsed
        if record is None:
            report.left_out += 1
        else:
            report.kept.add(unread_values(row.value, mapping))
            yield record
    if mapping:
        report.unused_columns.update(dict.fromkeys(mapping.unread()))
    if mapping and example:
        rows = report.rows - rows_before
        notes = mapping.placeholders.remarks()
        report.files += 1
        if report.files <= MAX_NOTED:
            read_as = f"{rows:,} rows, read as {mapping.describe()}. {example_line(example)}"
            notes = [read_as, *notes]
        if not mapping.prompts_only:
            notes += mapping.format.remarks()
        report.notes += [f"{table.name}: {note}" for note in notes]


def unread_values(row: Any, mapping: ColumnMapping | None) -> dict[str, Any]:
    """Return the values of a row's columns that nothing reads; of a user-defined reader, all that the row has."""
    if mapping:
        return {column: row[column] for column in mapping.unread_in_row}
    values = row if isinstance(row, dict) else {}
    return {str(column): value for column, value in values.items() if not is_empty(value)}


def column_hint(key: str, error: ChangesMeaning) -> str:
    """Return the settings that leave out a column which changes what a row means, or that read it."""
    block, name = key.rpartition(".")[0], error.column.rpartition(".")[2]
    ways = [Way({"columns": {name: None}}, "to leave it out")]
    read = {"columns": {error.role: error.column}}
    if error.role and not error.value:
        ways.append(Way(read, "to read it"))
    for word, meaning in {"true": "good", "false": "bad"}.items() if error.value else ():
        purpose = f"if {error.value} marks a {meaning} answer"
        ways.append(Way({**read, "labels": {error.value: word}}, purpose))
    return f". Type {typed_ways(ways, block)}."


def is_tie(row: ParsedRow) -> bool:
    """Return True if a row has several answers with the same score."""
    return len(row.answers) > 1 and len({*(row.scores or [])}) == 1


def example_line(row: ParsedRow) -> str:
    """Return a parsed row in one line. Of scored answers it has the best and the worst, to check their order."""
    turns = [(turn["role"], turn["content"]) for turn in row.messages]
    scored = [f" (score {score:g})" for score in row.scores or []] or [""] * len(row.answers)
    compares = bool(row.scores) and len(row.answers) > 1
    if compares:
        ranking = sorted(
            zip(row.scores or [], row.answers, scored, strict=True), key=lambda entry: -entry[0]
        )
        names = ("equally good",) * 2 if is_tie(row) else ("better", "worse")
        ends = zip(names, (ranking[0], ranking[-1]), strict=True)
        turns += [(name + score * row.graded, answer) for name, (_, answer, score) in ends]
    else:
        name = "answer" if turns else "running text"
        turns += [(name + score, answer) for score, answer in zip(scored, row.answers, strict=True)]
    texts = [f"{who}: {textwrap.shorten(what, MAX_SHOWN, placeholder=' …')}" for who, what in turns]
    return f"{'For example' if compares else 'First row'}: {' | '.join(texts)}"


def warn_unused_columns(
    path: str, columns: list[str], out: StageDir, kept: Collection[str] = ()
) -> None:
    """Warn about the columns of a source that nothing reads. Say which are `kept`."""
    if columns:
        out.warn(f"{path}: columns {shortlist(columns, MAX_NAMED)} are not used")
    available = [column for column in columns if column in kept]
    if available:
        out.inform(f"{path}: a reward function may take {shortlist(available, MAX_NAMED)}")


def quarantine(
    bad: list[Row], total: int, limit: float, out: StageDir, key: str = "data.max_bad"
) -> None:
    """Write unusable rows to `quarantine.jsonl`, and warn; raise UserError if their share exceeds `limit` (`key`)."""
    if not bad:
        return
    write_quarantine(bad, out)
    first = next((row for row in bad if row.error and row.error.ways), bad[0])
    has_way = bool(first.error and first.error.ways)
    first_error = f"{first.place}: {first.error}"
    if len(bad) > limit * total:
        allowed, way_out = "so that nothing is left", ""
        if len(bad) < total:
            allowed = f"and {key} allows a share of {limit:g}"
            way_out = f" Type {key}={share_above(len(bad), total):g} to leave them out."
        elif not has_way:
            way_out = " No setting reads them: write them anew."
        raise UserError(
            f"{first_error}. {len(bad)} of {total} rows are unusable, {allowed}.{way_out} They are listed in "
            f"{out / 'quarantine.jsonl'}."
        )
    reasons = ", ".join(f"{rows} ({reason})" for reason, rows in count_reasons(bad).most_common())
    out.warn(
        f"{len(bad)} of {total} rows are unusable, see quarantine.jsonl: {reasons}. The first: {first_error}"
    )


def share_above(count: int, total: int) -> float:
    """Return the smallest share in percent by which `count` of `total` rows are allowed."""
    percent = ceil(100 * count / total)
    return percent / 100 if percent / 100 * total >= count else (percent + 1) / 100


def count_reasons(rows: Iterable[Row]) -> Counter[str]:
    """Count unusable rows by reason. The part of a reason after `: ` belongs to one row, and is dropped."""
    errors = (row.error for row in rows if row.error)
    return Counter(str(BadRow(error.field, error.reason.partition(": ")[0])) for error in errors)


def write_quarantine(rows: list[Row], out: StageDir) -> None:
    """Write rows to `quarantine.jsonl`, with their reasons."""
    with open(out / "quarantine.jsonl", "a", encoding="utf-8") as file:
        for row in rows:
            assert row.error is not None
            entry = {
                "file": row.file,
                "line": row.line,
                "field": row.error.field,
                "reason": row.error.reason,
            }
            file.write(json.dumps({**entry, "row": as_json(row.value)}) + "\n")


def as_json(value: Any) -> Any:
    """Return a row unchanged if JSON can hold it, else its Python representation."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
    except RecursionError:
        return "nested too deeply to be shown"
