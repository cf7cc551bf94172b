"""What comes of a source: what is made of its rows, those that cannot be used, and columns that are not read."""

import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

from stages.config.blocks.data import Source
from stages.config.errors import UserError
from stages.formats.column_mapping import ColumnMapping, Purpose
from stages.formats.columns import ChangesMeaning
from stages.formats.detection import PEEKED, detect_mapping
from stages.formats.format import ParsedRow
from stages.formats.kto import KTO
from stages.formats.readers.files import Table, source_tables
from stages.formats.readers.row import BadRow, Row, Unwanted
from stages.formats.refusal_messages import missing_column_error, missing_key_error, nested_user_paths
from stages.store.workspace import Progress, StageDir

Record = TypeVar("Record")
PROGRESS_EVERY = 1000  # rows
MAX_NAMED = 20  # columns, in a warning
MAX_SHOWN = 100  # characters of a turn


@dataclass
class ReadReport:
    """What there was in a source: rows, file and line of the last, those that cannot be used, how many were left out;
    how many are unwanted and why, and those of them to be kept apart; the columns that nothing reads; and for every
    file lines of what was read as what."""

    rows: int = 0
    position: tuple[str, int] = ("", 0)
    bad_rows: list[Row] = field(default_factory=list)
    left_out: int = 0
    unwanted: Counter[str] = field(default_factory=Counter)
    flagged_rows: list[Row] = field(default_factory=list)
    unused_columns: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where the last row lies."""
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
    """What `made_of` makes of each row of a source; None leaves a row out, BadRow says why it cannot be used. What a
    row says is read by the format of its file, or by a function of the user's `own`. `found` is filled meanwhile.

    Raises:
        UserError: for a source without rows, a file that does not hold what is wanted, a column that changes what a
            row means, and one that `columns` names and no row has.
    """
    files, before, columns, missing_paths = (
        [*source_tables(source, key, purpose is Purpose.preferences)],
        0,
        dict[str, None](),
        nested_user_paths(source),
    )
    size = sum(table.size for table in files)
    with Progress(0, f"reading {key.removesuffix('.path')}", "row") as progress:
        for table in files:
            mapping = detect_mapping(table, source, key, purpose) if user_reader is None else None
            for record in convert_table(table, mapping, user_reader, convert_row, report, key):
                if report.rows - progress.done >= PROGRESS_EVERY:
                    if read := table.read():
                        progress.expect(round(report.rows * size / (before + read)))
                    progress.update(report.rows - progress.done)
                yield record
            before += table.size
            if mapping:
                columns.update(dict.fromkeys(chain.from_iterable(mapping.columns_by_keys)))
                missing_paths &= mapping.missing_paths
    if not report.rows:
        raise UserError(f"{key}={source.path}: holds no rows.")
    # Only now: a column of JSON lines may first come in any row.
    block = key.rpartition(".")[0]
    if columns and (error := missing_column_error(source, block, source.path, [*columns])):
        raise error
    if columns and missing_paths:
        first = [row.value for row in islice(files[0].rows(), PEEKED) if isinstance(row.value, dict)]
        raise missing_key_error(missing_paths, block, source.path, first)


def refuse_row(row: Any) -> ParsedRow:
    """What a row says in a file of which no row can be read."""
    raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")


def convert_table(
    table: Table,
    mapping: ColumnMapping | None,
    user_reader: Callable[[Any], ParsedRow] | None,
    convert_row: Callable[[ParsedRow], Record | None],
    report: ReadReport,
    key: str,
) -> Iterator[Record]:
    """What comes of a file's rows."""
    rows_before, example = report.rows, None
    for row in table.rows():
        report.rows += 1
        report.position = row.file, row.line
        try:
            if row.error:
                raise row.error
            parsed, columns = mapping.read(row.value) if mapping else ((user_reader or refuse_row)(row.value), [])
            if columns:
                report.unused_columns.update(dict.fromkeys(columns))
            record = convert_row(parsed)
        except UserError as error:
            hint = f". {column_hint(key, error)}" if isinstance(error, ChangesMeaning) else ""
            raise UserError(f"{row.file}: line {row.line}: {error}{hint}") from error
        except Unwanted as reason:
            row.error = reason
            report.unwanted[reason.field] += 1
            report.flagged_rows += [row] if reason.quarantined else []
            continue
        except BadRow as reason:
            row.error = reason
            report.bad_rows.append(row)
            continue
        if example is None or (is_tie(example) and not is_tie(parsed)):
            example = parsed
        if record is None:
            report.left_out += 1
        else:
            yield record
    if mapping and example:
        report.notes.append(
            f"{table.name}: {report.rows - rows_before:,} rows, read as {mapping.describe()}. {example_line(example)}"
        )
        remarks = mapping.placeholders.remarks() + ([] if mapping.prompts_only else mapping.format.remarks())
        report.notes += [f"{table.name}: {remark}" for remark in remarks]


def column_hint(key: str, error: ChangesMeaning) -> str:
    block, name = key.rpartition(".")[0], error.column.rpartition(".")[2]
    has_it_read = f"; {block}.columns={{{error.role}: {error.column}}} has it read" * bool(error.role)
    judged = f"; {block}.labels={{VALUE: true, VALUE: false}} says which answers are good" * (
        name in KTO.roles["label"].split()
    )
    return f"{block}.columns={{{name}: null}} leaves it out{has_it_read}{judged}."


def is_tie(row: ParsedRow) -> bool:
    """Whether a row compares answers, and calls none of them better."""
    return len(row.answers) > 1 and len({*(row.scores or [])}) == 1


def example_line(row: ParsedRow) -> str:
    """A row of a file as it is understood. Of answers that are compared it shows the best and the worst, so that a
    reader sees whether they are the right way round."""
    turns = [(turn["role"], turn["content"]) for turn in row.messages]
    scored = [f" ({score:g})" for score in row.scores or []] or [""] * len(row.answers)
    compares = bool(row.scores) and len(row.answers) > 1
    if compares:
        ranking = sorted(zip(row.scores or [], row.answers, scored, strict=True), key=lambda entry: -entry[0])
        names = ("as good", "as good") if is_tie(row) else ("better", "worse")
        ends = zip(names, (ranking[0], ranking[-1]), strict=True)
        turns += [(name + score * row.graded, answer) for name, (_, answer, score) in ends]
    else:
        name = "answer" if turns else "text"
        turns += [(name + score, answer) for score, answer in zip(scored, row.answers, strict=True)]
    texts = [f"{who}: {textwrap.shorten(what, MAX_SHOWN, placeholder=' …')}" for who, what in turns]
    return f"{'For example' if compares else 'First row'}: {' | '.join(texts)}"


def warn_unused_columns(path: str, columns: list[str], out: StageDir) -> None:
    """Name the columns of a source that nothing reads."""
    if columns:
        more = f" and {len(columns) - MAX_NAMED} more" if len(columns) > MAX_NAMED else ""
        out.warn(f"{path}: columns {', '.join(columns[:MAX_NAMED])}{more} are not used")


def quarantine(bad: list[Row], total: int, limit: float, out: StageDir, key: str = "data.max_bad") -> None:
    """Keep unusable rows with their reasons; stop where they are too many. `key` names the limit's setting."""
    if not bad:
        return
    write_quarantine(bad, out)
    first = bad[0]
    first_error = f"{first.file}: line {first.line}: {first.error}"
    if len(bad) > limit * total:
        raise UserError(
            f"{first_error}. {len(bad)} of {total} rows are unusable, more than {key}={limit:g} allows; "
            f"all are in {out / 'quarantine.jsonl'} with their reasons."
        )
    reasons = ", ".join(f"{rows} ({reason})" for reason, rows in count_reasons(bad).most_common())
    out.warn(f"{len(bad)} of {total} rows are unusable and in quarantine.jsonl: {reasons}; the first: {first_error}")


def count_reasons(rows: Iterable[Row]) -> Counter[str]:
    """How many rows cannot be used, by their reasons without what is particular to a row."""
    errors = (row.error for row in rows if row.error)
    return Counter(str(BadRow(error.field, error.reason.partition(": ")[0])) for error in errors)


def write_quarantine(rows: list[Row], out: StageDir) -> None:
    """Write rows to `quarantine.jsonl`, with their reasons."""
    with open(out / "quarantine.jsonl", "a", encoding="utf-8") as file:
        for row in rows:
            assert row.error is not None
            entry = {"file": row.file, "line": row.line, "field": row.error.field, "reason": row.error.reason}
            file.write(json.dumps({**entry, "row": as_json(row.value)}) + "\n")


def as_json(value: Any) -> Any:
    """A row as JSON can hold it: as it is, else as the text that Python shows of it."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
    except RecursionError:
        return "nested too deeply to be shown"
