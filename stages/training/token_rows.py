"""Tokenised rows as columns in memory: 4 bytes per token, and 4 for its label. Python lists take nine times that."""

from abc import ABC, abstractmethod
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from trl import pack_dataset

from stages.models.scoring import IGNORED
from stages.store.records import content_id
from stages.training.batches import fill_batches

ROWS_PER_TABLE = 250  # so many rows are lists until they become columns
# by the end of a column's name
KINDS = {
    "ids": pa.list_(pa.int32()),
    "mask": pa.list_(pa.bool_()),
    "tokens": pa.list_(pa.float32()),
    "id": pa.string(),
    "digest": pa.string(),
}
Row = dict[str, Any]
RowValue = TypeVar("RowValue")


class ColumnRows(ABC, Generic[RowValue]):
    """Rows for scoring, training or evaluation, in the order of adding. `ids` are their names."""

    noun: str  # the name of the rows in warnings

    def __init__(self) -> None:
        self.ids = list[str]()
        self._pending = list[RowValue]()
        self._tables = list[pa.Table]()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, name: str, row: RowValue) -> None:
        self.ids.append(name)
        self._pending.append(row)
        if len(self._pending) == ROWS_PER_TABLE:
            self._settle()

    def _settle(self) -> None:
        self._tables.append(self.table(self._pending))
        self._pending.clear()

    @abstractmethod
    def table(self, rows: list[RowValue]) -> pa.Table:
        """Return some rows as columns."""

    @property
    def tables(self) -> list[pa.Table]:
        if self._pending:
            self._settle()
        return self._tables

    @property
    def dataset(self) -> Dataset:
        """The rows as a dataset for a trainer. At least one row must exist."""
        # Without a fingerprint here, datasets would hash all tokens.
        return Dataset(pa.concat_tables(self.tables), fingerprint="rows")


class TokenRows(ColumnRows[tuple[list[int], list[bool]]]):
    """Demonstrations as token ids, and True per trained token, under TRL's names. Packed ones have `seq_lengths`."""

    noun = "rows"

    def table(self, rows: list[tuple[list[int], list[bool]]]) -> pa.Table:
        tokens, trained = zip(*rows, strict=True)
        ids = pa.array([*chain.from_iterable(tokens)], pa.int32())
        labels = pc.if_else(
            pa.array([*chain.from_iterable(trained)]), ids, pa.scalar(IGNORED, pa.int32())
        )
        return split_into_rows(np.cumsum([0, *map(len, tokens)]), ids, labels)

    @property
    def columns(self) -> pa.Table:
        return pa.concat_tables(self.tables)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every row."""
        return pc.list_value_length(self.columns["input_ids"]).to_pylist()  # type: ignore[no-any-return]

    @property
    def trained_counts(self) -> list[int]:
        """The number of trained tokens of every row."""
        counts = list[int]()
        for labels in self.columns["labels"].chunks:
            marks = labels.values.to_numpy() != IGNORED
            counts += np.add.reduceat(
                marks, labels.offsets.to_numpy()[:-1], dtype=np.int64
            ).tolist()
        return counts

    def pack(self, length: int, batch_size: int) -> None:
        """Pack the rows in place by best-fit decreasing into bins of `length` tokens that fill whole batches
        (arXiv:2404.10830). One process packs in a fixed order. Every step frees the columns before it."""
        order = sorted(range(len(self)), key=self.ids.__getitem__)
        self._tables = [self.columns.combine_chunks()]
        self._tables = [
            self.columns.take(order[i : i + ROWS_PER_TABLE])
            for i in range(0, len(order), ROWS_PER_TABLE)
        ]
        self._tables = [pack_dataset(self.dataset, length, "bfd").data.table]
        self._tables = [self.columns.combine_chunks()]
        bins = fill_batches(self.columns["seq_lengths"].to_pylist(), batch_size)
        tokens = [self.columns[name].chunk(0).values for name in ("input_ids", "labels")]
        table = split_into_rows(np.cumsum([0, *map(sum, bins)]), *tokens)
        self._tables = [table.append_column("seq_lengths", [bins])]
        self.ids = [content_id(ids.as_py()) for ids in self.columns["input_ids"]]
        self.noun = "packed rows"
        pa.default_memory_pool().release_unused()  # Arrow keeps freed memory otherwise


class PreferenceRows(ColumnRows[Row]):
    """Pairs. A row's `…_ids` are token ids, its `…_mask` True and False or None, its `…_tokens` a number per token, `id`
    and `digest` texts, all others numbers."""

    noun = "pairs"

    def table(self, rows: list[Row]) -> pa.Table:
        kinds = {name: KINDS.get(name.rpartition("_")[2], pa.float64()) for name in rows[0]}
        return pa.Table.from_pylist(rows, pa.schema(kinds))

    @property
    def rows(self) -> list[Row]:
        return [row for table in self.tables for row in table.to_pylist()]

    def tokens(self, *columns: str) -> list[int]:
        """Return for every row the number of tokens in these columns together."""
        counts = list[int]()
        for table in self.tables:
            lengths = (pc.list_value_length(table[name]).to_pylist() for name in columns)
            counts += map(sum, zip(*lengths, strict=True))
        return counts


class PromptRows(PreferenceRows):
    """Prompts to complete: the `id`, and `prompt_ids`."""

    noun = "prompts"


def split_into_rows(ends: np.ndarray, ids: Any, labels: Any) -> pa.Table:
    """Return a table of rows, from all tokens, all labels, and the places where rows begin and end."""
    columns = {"input_ids": ids, "labels": labels}
    # Offsets have 64 bits, because 32 would limit all rows together to 2^31 tokens.
    return pa.table(
        {name: pa.LargeListArray.from_arrays(ends, values) for name, values in columns.items()}
    )
