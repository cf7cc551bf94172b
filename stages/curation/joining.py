"""The rows that stay where sources come together, as tables: no prompt is in two splits, and no answer to it twice.

A prompt belongs to the split that took it first. Only in `sft` may it come again, with another answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.config.blocks.data import Source
from stages.config.choices import Split
from stages.curation.audit.gate import RowFilter
from stages.curation.mixing import Amount
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Row, Unwanted
from stages.store.records import GROUP, Example, SourceRow, content_id, stream
from stages.store.table_schema import schema_of

SPLITS = [str(split) for split in Split]
SFT = SPLITS.index(Split.sft)
NOBODY = -1
NOTHING = Amount(0, 0)
STEP, *ODD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64
RowIndex = NDArray[np.intp]  # of rows among all


@dataclass
class Rows:
    """All rows in the order in which they come, generated ones first, as numbers: 17 bytes each. `ids` are those of
    their prompts; `pairs` of a prompt with its answer, where the prompt comes more than once, else that of the prompt;
    `splits` are places in SPLITS. `parts`: where the rows of each source begin and end."""

    ids: NDArray[np.uint64]
    pairs: NDArray[np.uint64]
    splits: NDArray[np.int8]
    parts: list[slice]


def gathered(generated: Sequence[Example], files: Sequence[Path]) -> Rows:
    """The rows of some examples, and of tables of them."""
    ids, splits = [numbers([e.id for e in generated])], [places([e.split for e in generated])]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(GROUP, columns=["id", "split"]):
            ids.append(numbers(batch["id"].to_pylist()))
            splits.append(places(batch["split"].to_pylist()))
    found = np.concatenate(ids)
    ends = np.cumsum([len(generated), *(pq.read_metadata(file).num_rows for file in files)]).tolist()
    parts = [slice(*ends[i : i + 2]) for i in range(len(files))]
    _, number, times = np.unique(found, return_inverse=True, return_counts=True)
    again, pairs = times[number] > 1, found.copy()
    for i in np.flatnonzero(again[: len(generated)]).tolist():
        pairs[i] = int(content_id(generated[i].id, generated[i].reference), 16)
    for file, part in zip(files, parts, strict=True):
        add_pairs(pairs[part], again[part], file)
    return Rows(found, pairs, np.concatenate(splits), parts)


def add_pairs(pairs: NDArray[np.uint64], again: NDArray[np.bool_], file: Path) -> None:
    """Write the ids of prompts with their answers where these prompts come again."""
    if not again.any():
        return
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(GROUP, columns=["id", "reference"]):
        here = np.flatnonzero(again[start : start + len(batch)])
        for i, row in zip(here, batch.take(here).to_pylist(), strict=True):
            pairs[start + i] = int(content_id(row["id"], row["reference"]), 16)
        start += len(batch)


def numbers(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Ids, of 16 hex digits each, as numbers."""
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def ids_of(numbers: NDArray[np.uint64]) -> list[str]:
    """The ids that these numbers stand for."""
    return numbers.astype(">u8").tobytes().hex(" ", 8).split()


def places(splits: list[str]) -> NDArray[np.int8]:
    return np.array([SPLITS.index(split) for split in splits], np.int8)


class SplitLedger:
    """Who holds which prompt, and which answers to it sft has. `names` are the ids of rows as they are published: that
    of the prompt, or with another answer to a prompt that is there that of both."""

    def __init__(self, rows: Rows):
        self.rows, self.names = rows, rows.ids.copy()
        _, self.prompt = np.unique(rows.ids, return_inverse=True)
        _, self.pair = np.unique(rows.pairs, return_inverse=True)
        self.owner = np.full(len(rows.ids), NOBODY, np.int8)
        self.answered = np.zeros(len(rows.ids), bool)

    def fresh(self, rows: RowIndex) -> RowIndex:
        """Those of some rows that may stay, in their order."""
        splits, prompts = self.rows.splits[rows], self.prompt[rows]
        _, first, number = np.unique(prompts, return_index=True, return_inverse=True)
        owner = self.owner[prompts]
        leads = np.zeros(len(rows), bool)
        leads[first] = owner[first] == NOBODY
        owner = np.where(owner == NOBODY, splits[first][number], owner)
        to_learn = np.flatnonzero((owner == SFT) & (splits == SFT) & ~self.answered[self.pair[rows]])
        _, first = np.unique(self.pair[rows][to_learn], return_index=True)
        stays = leads & (splits != SFT)
        stays[to_learn[first]] = True
        others = rows[stays & ~leads]
        self.names[others] = self.rows.pairs[others]
        return rows[stays]

    def drawn(self, rows: RowIndex, limit: int | None) -> RowIndex:
        """So many of some rows, by their content: whatever the order of their file."""
        if limit is None or len(rows) <= limit:
            return rows
        order = numbers([content_id(name) for name in ids_of(self.names[rows])])
        return np.sort(rows[np.argsort(order, kind="stable")[:limit]])

    def hold(self, rows: RowIndex) -> None:
        """Take the prompts of rows that stay, and their answers."""
        self.owner[self.prompt[rows]] = self.rows.splits[rows]
        self.answered[self.pair[rows]] = True


@dataclass
class SourceRows:
    """`rows` are the places of all its rows among all, `drawn` those that may come, `amount` how many for sft do. Left
    out are `unwanted` rows, which the audit takes out, `copies` of earlier ones, and what `rows` of the source leaves
    over."""

    source: Source
    file: Path
    rows: RowIndex
    drawn: RowIndex
    unwanted: list[Row]
    copies: int
    left_over: int
    amount: Amount = NOTHING

    @classmethod
    def of(
        cls, source: Source, file: Path, rows: RowIndex, taken: SplitLedger, passes: RowFilter | None
    ) -> "SourceRows":
        """The rows that no earlier source has, as many as the source may bring; they are held from now on."""
        unwanted = dict(found_among(file, passes)) if passes else {}
        wanted = np.delete(rows, [*unwanted])
        fresh = taken.fresh(wanted)
        drawn = taken.drawn(fresh, source.rows)
        taken.hold(drawn)
        left_over = len(fresh) - len(drawn)
        return cls(source, file, rows, drawn, [*unwanted.values()], len(wanted) - len(fresh), left_over)

    def to_learn(self, taken: SplitLedger) -> RowIndex:
        """Those of its rows that are for sft."""
        return self.drawn[taken.rows.splits[self.drawn] == SFT]

    def draw_counts(self, taken: SplitLedger, seed: int) -> NDArray[np.int32]:
        """How often each of its rows comes."""
        found = np.zeros(len(self.rows), np.int32)
        if len(self.rows):
            first, to_learn = self.rows[0], self.to_learn(taken)
            found[self.drawn - first] = 1
            found[to_learn - first] = draw_counts(taken.names[to_learn], self.amount, seed)
        return found

    def counts(self, taken: SplitLedger) -> dict[str, int]:
        """How many rows come of it, by split."""
        found = np.bincount(taken.rows.splits[self.drawn], minlength=len(SPLITS)).tolist()
        found[SFT] = self.amount.total
        return {split: count for split, count in zip(SPLITS, found, strict=True) if count}

    def tables(self, taken: SplitLedger, seed: int) -> Iterator[pa.Table]:
        """The rows that come, in the order of the source; of one that comes again, with an id of its own."""
        comes, names, start = self.draw_counts(taken, seed), taken.names[self.rows], 0
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


def found_among(file: Path, passes: RowFilter) -> Iterator[tuple[int, Row]]:
    """The rows that an audit finds something in beside the rows before them, by their number, with the reason."""
    for i, row in enumerate(stream(file, SourceRow)):
        said = ParsedRow(row.messages, [] if row.reference is None else [row.reference])
        try:
            passes(said, row.split, row.file, row.line)
        except Unwanted as reason:
            yield i, Row(row.file, row.line, {"messages": row.messages, "reference": row.reference}, reason)


def draw_counts(ids: NDArray[np.uint64], amount: Amount, seed: int) -> NDArray[np.int32]:
    """Return how often each of a source's rows comes. Rows are drawn by their ids: a row that comes stays when the
    amount grows."""
    counts = np.zeros(len(ids), np.int32)
    if amount.drawn:
        order = np.argsort(shuffled(ids, seed), kind="stable")
        whole, rest = divmod(amount.total, amount.drawn)
        counts[order[: amount.drawn]] = whole
        counts[order[:rest]] += 1
    return counts


def shuffled(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Another number for every id, by a seed (the mixing of SplitMix64)."""
    mixed = ids + np.uint64((seed + 1) * STEP % 2**64)
    for shift, odd in zip((30, 27), ODD, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(odd)
    return mixed ^ (mixed >> np.uint64(31))
