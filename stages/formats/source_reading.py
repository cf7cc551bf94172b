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
from stages.formats.column_mapping import ColumnMapping, Wanted
from stages.formats.columns import ChangesMeaning
from stages.formats.detection import PEEKED, layout_of
from stages.formats.format import ParsedRow
from stages.formats.kto import KTO
from stages.formats.readers.files import Table, tables
from stages.formats.readers.row import BadRow, Row, Unwanted
from stages.formats.refusal_messages import dotted, no_such_column, no_such_key
from stages.store.workspace import Progress, StageDir

Made = TypeVar("Made")
TOLD_EVERY = 1000  # rows
NAMED = 20  # columns, in a warning
SHOWN = 100  # characters of a turn


@dataclass
class ReadReport:
    """What there was in a source: rows, file and line of the last, those that cannot be used, how many were left out;
    how many are unwanted and why, and those of them to be kept apart; the columns that nothing reads; and for every
    file lines of what was read as what."""

    rows: int = 0
    at: tuple[str, int] = ("", 0)
    bad: list[Row] = field(default_factory=list)
    left_out: int = 0
    unwanted: Counter[str] = field(default_factory=Counter)
    apart: list[Row] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where the last row lies."""
        file, line = self.at
        return f"{file}:{line}"

    @property
    def made(self) -> int:
        return self.rows - len(self.bad) - self.left_out - self.unwanted.total()


def convert(
    source: Source,
    key: str,
    made_of: Callable[[ParsedRow], Made | None],
    wanted: Wanted,
    found: ReadReport,
    own: Callable[[Any], ParsedRow] | None = None,
) -> Iterator[Made]:
    """What `made_of` makes of each row of a source; None leaves a row out, BadRow says why it cannot be used. What a
    row says is read by the format of its file, or by a function of the user's `own`. `found` is filled meanwhile.

    Raises:
        UserError: for a source without rows, a file that does not hold what is wanted, a column that changes what a
            row means, and one that `columns` names and no row has.
    """
    files, before, columns, unfound = (
        [*tables(source, key, wanted is Wanted.preferences)],
        0,
        dict[str, None](),
        dotted(source),
    )
    size = sum(table.size for table in files)
    with Progress(0, f"reading {key.removesuffix('.path')}", "row") as progress:
        for table in files:
            layout = layout_of(table, source, key, wanted) if own is None else None
            for made in of_table(table, layout, own, made_of, found, key):
                if found.rows - progress.done >= TOLD_EVERY:
                    if read := table.read():
                        progress.expect(round(found.rows * size / (before + read)))
                    progress.update(found.rows - progress.done)
                yield made
            before += table.size
            if layout:
                columns.update(dict.fromkeys(chain.from_iterable(layout.known)))
                unfound &= layout.unfound
    if not found.rows:
        raise UserError(f"{key}={source.path}: holds no rows.")
    # Only now: a column of JSON lines may first come in any row.
    block = key.rpartition(".")[0]
    if columns and (error := no_such_column(source, block, source.path, [*columns])):
        raise error
    if columns and unfound:
        first = [row.value for row in islice(files[0].rows(), PEEKED) if isinstance(row.value, dict)]
        raise no_such_key(unfound, block, source.path, first)


def refused(row: Any) -> ParsedRow:
    """What a row says in a file of which no row can be read."""
    raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")


def of_table(
    table: Table,
    layout: ColumnMapping | None,
    own: Callable[[Any], ParsedRow] | None,
    made_of: Callable[[ParsedRow], Made | None],
    found: ReadReport,
    key: str,
) -> Iterator[Made]:
    """What comes of a file's rows."""
    before, first = found.rows, None
    for row in table.rows():
        found.rows += 1
        found.at = row.file, row.line
        try:
            if row.error:
                raise row.error
            said, columns = layout.read(row.value) if layout else ((own or refused)(row.value), [])
            if columns:
                found.unused.update(dict.fromkeys(columns))
            made = made_of(said)
        except UserError as error:
            more = f". {way_out(key, error)}" if isinstance(error, ChangesMeaning) else ""
            raise UserError(f"{row.file}: line {row.line}: {error}{more}") from error
        except Unwanted as reason:
            row.error = reason
            found.unwanted[reason.field] += 1
            found.apart += [row] if reason.kept else []
            continue
        except BadRow as reason:
            row.error = reason
            found.bad.append(row)
            continue
        if first is None or (undecided(first) and not undecided(said)):
            first = said
        if made is None:
            found.left_out += 1
        else:
            yield made
    if layout and first:
        found.told.append(f"{table.name}: {found.rows - before:,} rows, read as {layout.told()}. {shown(first)}")
        remarks = layout.placeholders.remarks() + ([] if layout.asks else layout.format.remarks())
        found.told += [f"{table.name}: {remark}" for remark in remarks]


def way_out(key: str, error: ChangesMeaning) -> str:
    block, name = key.rpartition(".")[0], error.column.rpartition(".")[2]
    has_it_read = f"; {block}.columns={{{error.role}: {error.column}}} has it read" * bool(error.role)
    judged = f"; {block}.labels={{VALUE: true, VALUE: false}} says which answers are good" * (
        name in KTO.roles["label"].split()
    )
    return f"{block}.columns={{{name}: null}} leaves it out{has_it_read}{judged}."


def undecided(said: ParsedRow) -> bool:
    """Whether a row compares answers, and calls none of them better."""
    return len(said.answers) > 1 and len({*(said.scores or [])}) == 1


def shown(said: ParsedRow) -> str:
    """A row of a file as it is understood. Of answers that are compared it shows the best and the worst, so that a
    reader sees whether they are the right way round."""
    turns = [(turn["role"], turn["content"]) for turn in said.messages]
    scored = [f" ({score:g})" for score in said.scores or []] or [""] * len(said.answers)
    compares = bool(said.scores) and len(said.answers) > 1
    if compares:
        ranking = sorted(zip(said.scores or [], said.answers, scored, strict=True), key=lambda each: -each[0])
        names = ("as good", "as good") if undecided(said) else ("better", "worse")
        ends = zip(names, (ranking[0], ranking[-1]), strict=True)
        turns += [(name + score * said.graded, answer) for name, (_, answer, score) in ends]
    else:
        name = "answer" if turns else "text"
        turns += [(name + score, answer) for score, answer in zip(scored, said.answers, strict=True)]
    told = [f"{who}: {textwrap.shorten(what, SHOWN, placeholder=' …')}" for who, what in turns]
    return f"{'For example' if compares else 'First row'}: {' | '.join(told)}"


def tell_unused(path: str, columns: list[str], out: StageDir) -> None:
    """Name the columns of a source that nothing reads."""
    if columns:
        more = f" and {len(columns) - NAMED} more" if len(columns) > NAMED else ""
        out.warn(f"{path}: columns {', '.join(columns[:NAMED])}{more} are not used")


def quarantine(bad: list[Row], total: int, limit: float, out: StageDir, key: str = "data.max_bad") -> None:
    """Keep unusable rows with their reasons; stop where they are too many. `key` names the limit's setting."""
    if not bad:
        return
    keep_apart(bad, out)
    first = bad[0]
    told = f"{first.file}: line {first.line}: {first.error}"
    if len(bad) > limit * total:
        raise UserError(
            f"{told}. {len(bad)} of {total} rows are unusable, more than {key}={limit:g} allows; "
            f"all are in {out / 'quarantine.jsonl'} with their reasons."
        )
    reasons = ", ".join(f"{rows} ({reason})" for reason, rows in by_reason(bad).most_common())
    out.warn(f"{len(bad)} of {total} rows are unusable and in quarantine.jsonl: {reasons}; the first: {told}")


def by_reason(rows: Iterable[Row]) -> Counter[str]:
    """How many rows cannot be used, by their reasons without what is particular to a row."""
    errors = (row.error for row in rows if row.error)
    return Counter(str(BadRow(error.field, error.reason.partition(": ")[0])) for error in errors)


def keep_apart(rows: list[Row], out: StageDir) -> None:
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
