"""Work on many items that survives a kill: finished records are saved in shards, with the ids of their items."""

from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from stages.store.blocks import Block, BlocksDone
from stages.store.judged_pool import sort_on_disk
from stages.store.records import Record, Records, load, save
from stages.store.sealed_json import Damaged, move_aside
from stages.store.table_schema import records_of, table_of
from stages.store.workspace import SCRATCH, Progress, StageDir

MAX_BYTES = 1 << 30  # of records in memory

Item = TypeVar("Item")
Output = TypeVar("Output")


class StreamedTable(Generic[Record]):
    """The records of many items in columns, since Python's lists of numbers take nine times as much memory. Iteration
    yields the records in the order of `items`, and can be repeated. `belongs_to` returns a record's item.

    If the records take more than MAX_BYTES, those of shards stay in their files, until `in_order` sorts them."""

    def __init__(self, kind: type[Record], belongs_to: Callable[[Record], str], items: Sequence[str]):
        self.kind, self.belongs_to, self.items = kind, belongs_to, items
        self._tables, self._shards = dict[int, pa.Table](), dict[int, Path]()  # by number
        self._places, self._count, self._bytes = dict[str, tuple[int, int, int]](), 0, 0

    def add(self, records: Sequence[Record], min_records: int = 1, shard: Path | None = None) -> None:
        """Add records, an item's side by side, as saved in `shard`. Skip items with fewer than `min_records`."""
        start = 0
        for item, item_records in groupby(records, self.belongs_to):
            length = len([*item_records])
            if length >= min_records:
                self._places[item] = self._count, start, length
            start += length
        self._tables[self._count] = table_of(records, self.kind)
        self._bytes += self._tables[self._count].nbytes
        if shard:
            self._shards[self._count] = shard
        self._count += 1
        if self._bytes > MAX_BYTES:
            self._tables = {number: table for number, table in self._tables.items() if number not in self._shards}

    def in_order(self, folder: Path) -> "StreamedTable[Record] | Records[Record]":
        """Return this table, or its records in a sorted file in `folder` if they take more than MAX_BYTES."""
        if self._bytes <= MAX_BYTES:
            return self
        turns, file = {item: turn for turn, item in enumerate(self.items)}, folder / "in_order.parquet"
        records = sort_on_disk(self._unsorted(turns), self.kind, lambda r: turns[self.belongs_to(r)], folder)
        save(file, records, self.kind)
        return Records(file, self.kind)

    def _unsorted(self, items: Container[str]) -> Iterator[Record]:
        places = {item: place[0] for item, place in self._places.items() if item in items}
        for number in range(self._count):
            table = self._tables.get(number)
            records = load(self._shards[number], self.kind) if table is None else records_of(table, self.kind)
            yield from (record for record in records if places.get(self.belongs_to(record)) == number)

    def __contains__(self, item: str) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[Record]:
        for item in self.items:
            if item in self._places:
                table, start, length = self._places[item]
                yield from records_of(self._tables[table].slice(start, length), self.kind)

    def __len__(self) -> int:
        return sum(self._places[item][2] for item in self.items if item in self._places)


def produce_in_shards(
    items: Sequence[Item],
    identify: Callable[[Item], str],
    produce: Callable[[Sequence[Item]], Iterator[tuple[Item, list[Output]]]],
    kind: type[Output],
    belongs_to: Callable[[Output], str],
    size: int,
    title: str,
    out: StageDir,
    rows: int = 1,
    min_records: int = 1,
    blocks: Sequence[Block[Item]] | None = None,
) -> StreamedTable[Output] | Records[Output]:
    """Return the records that `produce` makes of the items. Shards of `size` items survive a kill. The records in a
    shard identify its items, so `size` may change before a resume. An item with fewer records than `min_records` is
    not saved, and the next attempt produces it again. The progress bar counts `rows` rows per item.

    With `blocks`, which hold all items, `produce` is called once per block, and a shard holds a block. The workers of
    `out` divide the blocks among them. A worker ends here by BlocksDone."""
    folder = out / SCRATCH / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    results = StreamedTable(kind, belongs_to, [*map(identify, items)])
    shards_read = set[Path]()

    def read_shards() -> None:
        for shard in sorted({*folder.glob("*.parquet")} - shards_read):
            try:
                results.add(load(shard, kind), min_records, shard)
                shards_read.add(shard)
            except Damaged as error:
                move_aside(shard, error)

    def unfinished() -> list[Block[Item]]:
        return [block for block in blocks or () if any(item not in results for item in block.ids)]

    def save_block(block: Block[Item], progress: Progress | None = None) -> list[Output]:
        finished = list[Output]()
        for _, records in produce([item for item in block.items if identify(item) not in results]):
            finished += records
            if progress:
                progress.update(rows)
        save(block.shard(folder), finished, kind)
        return finished

    read_shards()
    if blocks is not None and out.work:
        out.work(unfinished(), folder, save_block)
        raise BlocksDone
    waiting = [item for item in items if identify(item) not in results]
    with Progress(len(items) * rows, title, "row", done=(len(items) - len(waiting)) * rows) as progress:
        if blocks is not None:
            if len(waiting_blocks := unfinished()) > 1 and out.divide:
                out.divide(waiting_blocks, partial(count_finished, waiting_blocks, folder, rows, progress, set()))
                read_shards()
            for block in unfinished():
                results.add(save_block(block, progress), shard=block.shard(folder))
            return results.in_order(folder.parent / "sorted")
        numbers = (int(shard.stem) for shard in folder.glob("*.parquet") if shard.stem.isdecimal())
        shard_numbers = count(1 + max(numbers, default=-1))

        def complete() -> Iterator[list[Output]]:
            for _, records in produce(waiting):
                progress.update(rows)
                if len(records) >= min_records:
                    yield records
                else:
                    results.add(records)

        produced = complete()
        while shard_records := [*chain.from_iterable(islice(produced, size))]:
            shard = folder / f"{next(shard_numbers):06d}.parquet"
            save(shard, shard_records, kind)
            results.add(shard_records, shard=shard)
    return results.in_order(folder.parent / "sorted")


def count_finished(blocks: Sequence[Block[Item]], folder: Path, rows: int, progress: Progress, done: set[str]) -> None:
    """Add the blocks that workers have saved since the last call to the progress bar. `done`: the names of these."""
    for block in blocks:
        if block.name not in done and block.shard(folder).exists():
            done.add(block.name)
            progress.update(rows * len(block.items))
