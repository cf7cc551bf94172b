"""Tokenised rows as columns: 8 bytes a token, in memory. As lists of Python's integers they take 44."""

from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from trl import pack_dataset

from stages.store.records import content_id
from stages.training.batches import fill

IGNORED = -100  # the label of a token that is not trained
GROUP = 250  # rows that wait as lists until they become columns


class TokenRows:
    """Rows to train or to evaluate on, in the order in which they were added. `ids` are their names; the columns
    `input_ids`, `labels` and, of packed rows, `seq_lengths` are TRL's."""

    def __init__(self) -> None:
        self.ids = list[str]()
        self._waiting = list[tuple[list[int], list[bool]]]()
        self._groups = list[pa.Table]()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, row: str, ids: list[int], trained: list[bool]) -> None:
        """A row of this id: its token ids, and which of them are trained."""
        self.ids.append(row)
        self._waiting.append((ids, trained))
        if len(self._waiting) == GROUP:
            self._settle()

    def _settle(self) -> None:
        tokens, trained = zip(*self._waiting, strict=True)
        ends = np.cumsum([0, *map(len, tokens)])
        ids = pa.array([*chain.from_iterable(tokens)], pa.int32())
        labels = pc.if_else(pa.array([*chain.from_iterable(trained)]), ids, pa.scalar(IGNORED, pa.int32()))
        self._groups.append(table(ends, ids, labels))
        self._waiting.clear()

    @property
    def columns(self) -> pa.Table:
        if self._waiting:
            self._settle()
        return pa.concat_tables(self._groups)

    @property
    def dataset(self) -> Dataset:
        """As a trainer reads them."""
        return Dataset(self.columns, fingerprint="rows")  # one of its own making would be a hash of all tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return pc.list_value_length(self.columns["input_ids"]).to_pylist()  # type: ignore[no-any-return]

    @property
    def trained(self) -> list[int]:
        """Trained tokens of every row."""
        counts = list[int]()
        for labels in self.columns["labels"].chunks:
            marks = labels.values.to_numpy() != IGNORED
            counts += np.add.reduceat(marks, labels.offsets.to_numpy()[:-1], dtype=np.int64).tolist()
        return counts

    def pack(self, length: int, batch_size: int) -> None:
        """Become best-fit decreasing bins of `length` tokens, in one process and a fixed order (arXiv:2404.10830),
        that fill whole batches. In place: every step lets go of the columns before it."""
        order = sorted(range(len(self)), key=self.ids.__getitem__)
        self._groups = [self.columns.combine_chunks()]
        self._groups = [self.columns.take(order[i : i + GROUP]) for i in range(0, len(order), GROUP)]
        self._groups = [pack_dataset(self.dataset, length, "bfd").data.table]
        self._groups = [self.columns.combine_chunks()]
        bins = fill(self.columns["seq_lengths"].to_pylist(), batch_size)
        tokens = [self.columns[name].chunk(0).values for name in ("input_ids", "labels")]
        cut = table(np.cumsum([0, *map(sum, bins)]), *tokens)
        self._groups = [cut.append_column("seq_lengths", [bins])]
        self.ids = [content_id(ids.as_py()) for ids in self.columns["input_ids"]]
        pa.default_memory_pool().release_unused()  # Arrow would keep what it needed on the way


def table(ends: np.ndarray, ids: Any, labels: Any) -> pa.Table:
    """Rows that begin and end at these places of all their tokens."""
    columns = {"input_ids": ids, "labels": labels}
    # 64-bit offsets: those of 32 bits would end at 2^31 tokens of all rows.
    return pa.table({name: pa.LargeListArray.from_arrays(ends, values) for name, values in columns.items()})
