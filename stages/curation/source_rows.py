"""What becomes of a source's rows where it joins others, and the rows that come of it, as tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.config.blocks.data import Source
from stages.curation.audit.gate import Gate
from stages.curation.joining import SFT, SPLITS, Places, Taken, ids_of
from stages.curation.mixing import times
from stages.curation.shares import Amount
from stages.formats.format import Said
from stages.formats.readers.row import Row, Unwanted
from stages.store.records import GROUP, Example, SourceRow, content_id, stream
from stages.store.table_schema import schema_of

NOTHING = Amount(0, 0)


@dataclass
class Part:
    """`rows` are the places of all its rows among all, `drawn` those that may come, `amount` how many for sft do. Left
    out are `unwanted` rows, which the audit takes out, `copies` of earlier ones, and what `rows` of the source leaves
    over."""

    source: Source
    file: Path
    rows: Places
    drawn: Places
    unwanted: list[Row]
    copies: int
    left_over: int
    amount: Amount = NOTHING

    @classmethod
    def of(cls, source: Source, file: Path, rows: Places, taken: Taken, passes: Gate | None) -> "Part":
        """The rows that no earlier source has, as many as the source may bring; they are held from now on."""
        unwanted = dict(found_among(file, passes)) if passes else {}
        wanted = np.delete(rows, [*unwanted])
        fresh = taken.fresh(wanted)
        drawn = taken.drawn(fresh, source.rows)
        taken.hold(drawn)
        left_over = len(fresh) - len(drawn)
        return cls(source, file, rows, drawn, [*unwanted.values()], len(wanted) - len(fresh), left_over)

    def to_learn(self, taken: Taken) -> Places:
        """Those of its rows that are for sft."""
        return self.drawn[taken.rows.splits[self.drawn] == SFT]

    def times(self, taken: Taken, seed: int) -> NDArray[np.int32]:
        """How often each of its rows comes."""
        found = np.zeros(len(self.rows), np.int32)
        if len(self.rows):
            first, to_learn = self.rows[0], self.to_learn(taken)
            found[self.drawn - first] = 1
            found[to_learn - first] = times(taken.names[to_learn], self.amount, seed)
        return found

    def counts(self, taken: Taken) -> dict[str, int]:
        """How many rows come of it, by split."""
        found = np.bincount(taken.rows.splits[self.drawn], minlength=len(SPLITS)).tolist()
        found[SFT] = self.amount.total
        return {split: count for split, count in zip(SPLITS, found, strict=True) if count}

    def tables(self, taken: Taken, seed: int) -> Iterator[pa.Table]:
        """The rows that come, in the order of the source; of one that comes again, with an id of its own."""
        comes, names, start = self.times(taken, seed), taken.names[self.rows], 0
        for batch in pq.ParquetFile(self.file).iter_batches(GROUP, columns=schema_of(Example).names):
            here = comes[start : start + len(batch)]
            places = np.repeat(np.arange(len(here)), here)
            turns = np.arange(len(places)) - np.repeat(np.cumsum(here) - here, here)
            ids = ids_of(names[start + places])
            for i in np.flatnonzero(turns).tolist():
                ids[i] = content_id(ids[i], int(turns[i]))
            table = pa.Table.from_batches([batch])
            table = table if (here == 1).all() else table.take(places)
            yield table.set_column(0, "id", pa.array(ids, pa.string()))
            start += len(batch)


def found_among(file: Path, passes: Gate) -> Iterator[tuple[int, Row]]:
    """The rows that an audit finds something in beside the rows before them, by their number, with the reason."""
    for i, row in enumerate(stream(file, SourceRow)):
        said = Said(row.messages, [] if row.reference is None else [row.reference])
        try:
            passes(said, row.split, row.file, row.line)
        except Unwanted as reason:
            yield i, Row(row.file, row.line, {"messages": row.messages, "reference": row.reference}, reason)
