"""Which rows stay where sources come together: no prompt stands in two splits, and no answer to it twice.

A prompt belongs to the split that took it first. Only in `sft` may it come again, with another answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.config.choices import Split
from stages.store.records import GROUP, Example, content_id

SPLITS = [str(split) for split in Split]
SFT = SPLITS.index(Split.sft)
NOBODY = -1
Places = NDArray[np.intp]  # of rows among all


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


class Taken:
    """Who holds which prompt, and which answers to it sft has. `names` are the ids of rows as they are published: that
    of the prompt, or with another answer to a prompt that is there that of both."""

    def __init__(self, rows: Rows):
        self.rows, self.names = rows, rows.ids.copy()
        _, self.prompt = np.unique(rows.ids, return_inverse=True)
        _, self.pair = np.unique(rows.pairs, return_inverse=True)
        self.owner = np.full(len(rows.ids), NOBODY, np.int8)
        self.answered = np.zeros(len(rows.ids), bool)

    def fresh(self, rows: Places) -> Places:
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

    def drawn(self, rows: Places, limit: int | None) -> Places:
        """So many of some rows, by their content: whatever the order of their file."""
        if limit is None or len(rows) <= limit:
            return rows
        order = numbers([content_id(name) for name in ids_of(self.names[rows])])
        return np.sort(rows[np.argsort(order, kind="stable")[:limit]])

    def hold(self, rows: Places) -> None:
        """Take the prompts of rows that stay, and their answers."""
        self.owner[self.prompt[rows]] = self.rows.splits[rows]
        self.answered[self.pair[rows]] = True
