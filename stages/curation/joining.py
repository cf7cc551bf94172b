"""Joining of sources, as tables: no prompt is in two splits, and no answer to a prompt occurs twice. A prompt belongs
to the first split that claims it. Only in `sft` may a prompt occur again, with another answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.config.blocks.data import Amount, Source
from stages.config.choices import Split
from stages.curation.audit.auditor import RowFilter
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Row, Unwanted
from stages.store.records import ROWS_PER_GROUP, Example, SourceRow, content_id, stream
from stages.store.table_schema import schema_of

SPLITS = [str(split) for split in Split]
SFT = SPLITS.index(Split.sft)
NOBODY = -1
NOTHING = Amount(0, 0)
STEP, *ODD = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64
RowIndex = NDArray[np.intp]  # indexes into the rows of all sources


@dataclass
class Rows:
    """All rows in order, generated rows first, in 17 bytes per row. ids: of the prompts, as numbers. pairs: an id of
    prompt and answer for a prompt that recurs, else its id. splits: indexes into SPLITS. slices: of each source."""

    ids: NDArray[np.uint64]
    pairs: NDArray[np.uint64]
    splits: NDArray[np.int8]
    slices: list[slice]


def gather_rows(generated: Sequence[Example], files: Sequence[Path]) -> Rows:
    """Return the rows of generated examples, followed by the rows of each file."""
    ids = [ids_to_numbers([e.id for e in generated])]
    splits = [split_indexes([e.split for e in generated])]
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=["id", "split"]):
            ids.append(ids_to_numbers(batch["id"].to_pylist()))
            splits.append(split_indexes(batch["split"].to_pylist()))
    all_ids = np.concatenate(ids)
    ends = np.cumsum(
        [len(generated), *(pq.read_metadata(file).num_rows for file in files)]
    ).tolist()
    slices = [slice(*ends[i : i + 2]) for i in range(len(files))]
    _, number, times = np.unique(all_ids, return_inverse=True, return_counts=True)
    repeated, pairs = times[number] > 1, all_ids.copy()
    for i in np.flatnonzero(repeated[: len(generated)]).tolist():
        pairs[i] = int(content_id(generated[i].id, generated[i].reference), 16)
    for file, part in zip(files, slices, strict=True):
        add_pairs(pairs[part], repeated[part], file)
    return Rows(all_ids, pairs, np.concatenate(splits), slices)


def add_pairs(pairs: NDArray[np.uint64], repeated: NDArray[np.bool_], file: Path) -> None:
    """Write the ids of prompt and answer into `pairs`, for prompts that occur more than once."""
    if not repeated.any():
        return
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=["id", "reference"]):
        here = np.flatnonzero(repeated[start : start + len(batch)])
        for i, row in zip(here, batch.take(here).to_pylist(), strict=True):
            pairs[start + i] = int(content_id(row["id"], row["reference"]), 16)
        start += len(batch)


def ids_to_numbers(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return ids of 16 hexadecimal digits as numbers."""
    return np.frombuffer(bytes.fromhex("".join(ids)), ">u8").astype(np.uint64)


def numbers_to_ids(numbers: NDArray[np.uint64]) -> list[str]:
    return numbers.astype(">u8").tobytes().hex(" ", 8).split()


def split_indexes(splits: list[str]) -> NDArray[np.int8]:
    return np.array([SPLITS.index(split) for split in splits], np.int8)


class SplitLedger:
    """A record of the split that owns each prompt, and of the answers that `sft` has to the prompt. names: the
    published ids of rows. A prompt's first row has the prompt's id; a row with another answer has the pair's."""

    def __init__(self, rows: Rows):
        self.rows, self.names = rows, rows.ids.copy()
        _, self.prompt = np.unique(rows.ids, return_inverse=True)
        _, self.pair = np.unique(rows.pairs, return_inverse=True)
        self.owner = np.full(len(rows.ids), NOBODY, np.int8)
        self.answered = np.zeros(len(rows.ids), bool)

    def new_rows(self, rows: RowIndex) -> RowIndex:
        """Return the rows, in order, that break no rule: new prompts, and in `sft` also new answers to its prompts."""
        splits, prompts = self.rows.splits[rows], self.prompt[rows]
        _, first, number = np.unique(prompts, return_index=True, return_inverse=True)
        owner = self.owner[prompts]
        is_first = np.zeros(len(rows), bool)
        is_first[first] = owner[first] == NOBODY
        owner = np.where(owner == NOBODY, splits[first][number], owner)
        to_learn = np.flatnonzero(
            (owner == SFT) & (splits == SFT) & ~self.answered[self.pair[rows]]
        )
        _, first = np.unique(self.pair[rows][to_learn], return_index=True)
        is_kept = is_first & (splits != SFT)
        is_kept[to_learn[first]] = True
        other_answers = rows[is_kept & ~is_first]
        self.names[other_answers] = self.rows.pairs[other_answers]
        return rows[is_kept]

    def draw(self, rows: RowIndex, limit: int | None) -> RowIndex:
        """Return at most `limit` of some rows, chosen by the hash of their id and not by the file's order."""
        if limit is None or len(rows) <= limit:
            return rows
        order = ids_to_numbers([content_id(name) for name in numbers_to_ids(self.names[rows])])
        return np.sort(rows[np.argsort(order, kind="stable")[:limit]])

    def claim(self, rows: RowIndex) -> None:
        """Assign the prompts of rows to the rows' splits, and record their answers."""
        self.owner[self.prompt[rows]] = self.rows.splits[rows]
        self.answered[self.pair[rows]] = True


@dataclass
class SourceRows:
    """The rows of one source. rows: indexes of all its rows. drawn: indexes of the rows that stay. unwanted: rows that
    the audit removes. copies: the number of rows that repeat earlier rows. left_over: the number of rows beyond the
    source's `rows` setting. amount: the numbers of rows for sft."""

    source: Source
    file: Path
    rows: RowIndex
    drawn: RowIndex
    unwanted: list[Row]
    copies: int
    left_over: int
    amount: Amount = NOTHING

    @classmethod
    def select(
        cls,
        source: Source,
        file: Path,
        rows: RowIndex,
        ledger: SplitLedger,
        row_filter: RowFilter | None,
    ) -> "SourceRows":
        """Return the rows of a source that no earlier source has, up to its `rows`, and claim them in the ledger."""
        unwanted = dict(find_unwanted(file, row_filter)) if row_filter else {}
        audited = np.delete(rows, [*unwanted])
        fresh = ledger.new_rows(audited)
        drawn = ledger.draw(fresh, source.rows)
        ledger.claim(drawn)
        left_over = len(fresh) - len(drawn)
        return cls(
            source, file, rows, drawn, [*unwanted.values()], len(audited) - len(fresh), left_over
        )

    def sft_rows(self, ledger: SplitLedger) -> RowIndex:
        """Return the drawn rows of split `sft`."""
        return self.drawn[ledger.rows.splits[self.drawn] == SFT]

    def draw_counts(self, ledger: SplitLedger, seed: int) -> NDArray[np.int32]:
        """Return how often each row of the source is written: 0 for rows that are not drawn."""
        counts = np.zeros(len(self.rows), np.int32)
        if len(self.rows):
            first, sft_rows = self.rows[0], self.sft_rows(ledger)
            counts[self.drawn - first] = 1
            counts[sft_rows - first] = draw_counts(ledger.names[sft_rows], self.amount, seed)
        return counts

    def counts(self, ledger: SplitLedger) -> dict[str, int]:
        """Return the number of rows that the source contributes to each split, with repetitions in sft."""
        counts = np.bincount(ledger.rows.splits[self.drawn], minlength=len(SPLITS)).tolist()
        counts[SFT] = self.amount.total
        return {split: count for split, count in zip(SPLITS, counts, strict=True) if count}

    def tables(self, ledger: SplitLedger, seed: int) -> Iterator[pa.Table]:
        """Yield the used rows in the order of the source. Each repetition of a row gets a new id."""
        counts, names, start = self.draw_counts(ledger, seed), ledger.names[self.rows], 0
        for batch in pq.ParquetFile(self.file).iter_batches(
            ROWS_PER_GROUP, columns=schema_of(Example).names
        ):
            batch_counts = counts[start : start + len(batch)]
            positions = np.repeat(np.arange(len(batch_counts)), batch_counts)
            repeats = np.arange(len(positions)) - np.repeat(
                np.cumsum(batch_counts) - batch_counts, batch_counts
            )
            ids = numbers_to_ids(names[start + positions])
            for i in np.flatnonzero(repeats).tolist():
                ids[i] = content_id(ids[i], int(repeats[i]))
            table = pa.Table.from_batches([batch])
            table = table if (batch_counts == 1).all() else table.take(positions)
            yield table.set_column(0, "id", pa.array(ids, pa.string()))
            start += len(batch)


def find_unwanted(file: Path, row_filter: RowFilter) -> Iterator[tuple[int, Row]]:
    """Yield the index of each row that the audit rejects when it compares rows, and the row with the reason."""
    for i, row in enumerate(stream(file, SourceRow)):
        parsed_row = ParsedRow(row.messages, [] if row.reference is None else [row.reference])
        try:
            row_filter(parsed_row, row.split, row.file, row.line)
        except Unwanted as reason:
            yield (
                i,
                Row(
                    row.file,
                    row.line,
                    {"messages": row.messages, "reference": row.reference},
                    reason,
                ),
            )


def draw_counts(ids: NDArray[np.uint64], amount: Amount, seed: int) -> NDArray[np.int32]:
    """Return how often each of a source's rows is used. A row that is drawn stays drawn when the amount grows."""
    counts = np.zeros(len(ids), np.int32)
    if amount.drawn:
        order = np.argsort(shuffled(ids, seed), kind="stable")
        whole, extra = divmod(amount.total, amount.drawn)
        counts[order[: amount.drawn]] = whole
        counts[order[:extra]] += 1
    return counts


def shuffled(ids: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random number for every id, by a seed (the mixing of SplitMix64)."""
    mixed = ids + np.uint64((seed + 1) * STEP % 2**64)
    for shift, odd in zip((30, 27), ODD, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(odd)
    return mixed ^ (mixed >> np.uint64(31))
