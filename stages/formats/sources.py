"""What comes of a source: what is made of its rows, those that cannot be used, and columns that are not read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stages.config.errors import UserError
from stages.config.schema import Source
from stages.formats.columns import ChangesMeaning
from stages.formats.files import BadRow, Row, rows
from stages.store.work import Work

Made = TypeVar("Made")
NAMED = 20  # columns, in a warning


@dataclass
class Found(Generic[Made]):
    """What came of a source's rows: what was made of them, those that cannot be used, and columns not read."""

    made: list[Made]
    bad: list[Row]
    unused: list[str]


def convert(
    source: Source, key: str, made_of: Callable[[Any], Made | None], unused: Callable[[Any], list[str]], way_out: str
) -> Found[Made]:
    """What `made_of` makes of each row of a source; None leaves a row out, BadRow says why it cannot be used. `unused`
    names the columns of a row that it does not read.

    Raises:
        UserError: for a source without rows, and for a column that changes what a row means; `way_out` ends that line.
    """
    made, bad, names, row = list[Made](), list[Row](), dict[str, None](), None
    for row in rows(source, key):
        try:
            if row.error:
                raise row.error
            found = made_of(row.value)
        except ChangesMeaning as error:
            raise UserError(f"{row.file}: line {row.line}: {error}. {way_out}") from error
        except BadRow as reason:
            row.error = reason
            bad.append(row)
            continue
        names |= dict.fromkeys(unused(row.value))
        if found is not None:
            made.append(found)
    if row is None:
        raise UserError(f"{key}={source.path}: holds no rows.")
    return Found(made, bad, list(names))


def tell_unused(path: str, columns: list[str], out: Work) -> None:
    """Name the columns of a source that nothing reads."""
    if columns:
        more = f" and {len(columns) - NAMED} more" if len(columns) > NAMED else ""
        out.warn(f"{path}: columns {', '.join(columns[:NAMED])}{more} are not used")


def quarantine(bad: list[Row], total: int, limit: float, out: Work, key: str = "data.max_bad") -> None:
    """Keep unusable rows with their reasons; stop where they are too many. `key` names the limit's setting."""
    if not bad:
        return
    with open(out / "quarantine.jsonl", "a") as file:
        for row in bad:
            assert row.error is not None
            entry = {"file": row.file, "line": row.line, "field": row.error.field, "reason": row.error.reason}
            file.write(json.dumps({**entry, "row": as_json(row.value)}) + "\n")
    first = bad[0]
    told = f"{first.file}: line {first.line}: {first.error}"
    if len(bad) > limit * total:
        raise UserError(
            f"{told}. {len(bad)} of {total} rows are unusable, more than {key}={limit:g} allows; "
            f"all are in {out / 'quarantine.jsonl'} with their reasons."
        )
    out.warn(f"{len(bad)} of {total} rows are unusable and in quarantine.jsonl; the first: {told}")


def as_json(value: Any) -> Any:
    """A row as JSON can hold it: as it is, else as the text that Python shows of it."""
    try:
        return json.loads(json.dumps(value, default=str, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
    except RecursionError:
        return "nested too deeply to be shown"
