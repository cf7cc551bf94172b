"""Work on many items that survives a kill: finished records are saved in shards, with the ids of their items."""

from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, groupby
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

    def __init__(
        self, kind: type[Record], belongs_to: Callable[[Record], str], items: Sequence[str]
    ):
        self.kind, self.belongs_to, self.items = kind, belongs_to, items
        self._tables, self._shards = dict[int, pa.Table](), dict[int, Path]()  # by number
        self._places, self._count, self._bytes = dict[str, tuple[int, int, int]](), 0, 0

    def add(
        self, records: Sequence[Record], min_records: int = 1, shard: Path | None = None
    ) -> None:
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
            self._tables = {
                number: table
                for number, table in self._tables.items()
                if number not in self._shards
            }

    def in_order(self, folder: Path) -> "StreamedTable[Record] | Records[Record]":
        """Return this table, or its records in a sorted file in `folder` if they take more than MAX_BYTES."""
        if self._bytes <= MAX_BYTES:
            return self
        turns = {item: turn for turn, item in enumerate(self.items)}
        file = folder / "in_order.parquet"
        records = sort_on_disk(
            self._unsorted(turns), self.kind, lambda r: turns[self.belongs_to(r)], folder
        )
        save(file, records, self.kind)
        return Records(file, self.kind)

    def _unsorted(self, items: Container[str]) -> Iterator[Record]:
        places = {item: place[0] for item, place in self._places.items() if item in items}
        for number in range(self._count):
            table = self._tables.get(number)
            records = (
                load(self._shards[number], self.kind)
                if table is None
                else records_of(table, self.kind)
            )
            yield from (
                record for record in records if places.get(self.belongs_to(record)) == number
            )

    def __contains__(self, item: str) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[Record]:
        for item in self.items:
            if item in self._places:
                table, start, length = self._places[item]
                yield from records_of(self._tables[table].slice(start, length), self.kind)

    def __len__(self) -> int:
        return sum(self._places[item][2] for item in self.items if item in self._places)


@dataclass
class ShardedWork(Generic[Item, Output]):
    """Items of which `produce` makes records, saved in shards of any size that survive a kill: a record tells its
    item by `belongs_to`. An item has `rows` records; with fewer it is not saved, and produced again."""

    items: Sequence[Item]
    identify: Callable[[Item], str]
    produce: Callable[[Sequence[Item]], Iterator[tuple[Item, list[Output]]]]
    kind: type[Output]
    belongs_to: Callable[[Output], str]
    title: str
    out: StageDir
    rows: int = 1

    def __post_init__(self) -> None:
        self.folder, self.shards_read = self.out / SCRATCH / "shards", set[Path]()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = StreamedTable(self.kind, self.belongs_to, [*map(self.identify, self.items)])
        self.read_shards()

    def in_blocks(self, blocks: Sequence[Block[Item]]) -> StreamedTable[Output] | Records[Output]:
        """Return the records. `produce` is called once per block, and a shard holds a block. The blocks hold all
        items, and the workers of `out` divide them. A worker ends here by BlocksDone."""
        if self.out.work:
            self.out.work(self.unfinished(blocks), self.folder, self.save_block)
            raise BlocksDone
        with self.progress() as progress:
            if len(waiting := self.unfinished(blocks)) > 1 and self.out.divide:
                self.out.divide(waiting, partial(self.count_finished, waiting, progress))
                self.read_shards()
                waiting = self.unfinished(blocks)
                if waiting:
                    self.stop_if_late(progress)
            for number, block in enumerate(waiting, 1):
                self.results.add(self.save_block(block, progress), shard=block.shard(self.folder))
                if number < len(waiting):
                    self.stop_if_late(progress)
        return self.results.in_order(self.folder.parent / "sorted")

    def in_shards(self, size: int) -> StreamedTable[Output] | Records[Output]:
        """Return the records. `produce` is called once, and a shard holds the next `size` items that are finished, or
        fewer when the time is up."""
        with self.progress() as progress, closing(self.complete(progress)) as produced:
            free = (
                shard for i in count() if not (shard := self.folder / f"{i:06d}.parquet").exists()
            )
            while records := [*chain.from_iterable(self.next_shard(produced, size))]:
                save(shard := next(free), records, self.kind)
                self.results.add(records, shard=shard)
                if self.waiting(self.items):
                    self.stop_if_late(progress)
        return self.results.in_order(self.folder.parent / "sorted")

    def next_shard(self, produced: Iterator[list[Output]], size: int) -> Iterator[list[Output]]:
        """Yield the records of the next `size` items, or of fewer when the time is up."""
        for number, records in enumerate(produced, 1):
            yield records
            if number == size or self.out.allowance.is_late:
                return

    def stop_if_late(self, progress: Progress) -> None:
        """Raise LimitReached if the time is up."""
        counts = f"{progress.done:,} of {progress.total:,} {progress.unit}s"
        self.out.allowance.stop_if_late(f"in {self.title} after {counts}, which are kept")

    def read_shards(self) -> None:
        for shard in sorted({*self.folder.glob("*.parquet")} - self.shards_read):
            try:
                self.results.add(load(shard, self.kind), self.rows, shard)
                self.shards_read.add(shard)
            except Damaged as error:
                move_aside(shard, error)

    def waiting(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if self.identify(item) not in self.results]

    def unfinished(self, blocks: Sequence[Block[Item]]) -> list[Block[Item]]:
        return [block for block in blocks if any(item not in self.results for item in block.ids)]

    def progress(self) -> Progress:
        done = len(self.items) - len(self.waiting(self.items))
        return Progress(len(self.items) * self.rows, self.title, "row", done=done * self.rows)

    def count_finished(self, blocks: Sequence[Block[Item]], progress: Progress) -> None:
        """Move the progress bar to the blocks that workers have saved."""
        finished = sum(len(block.items) for block in blocks if block.shard(self.folder).exists())
        progress.update(progress.first_row + self.rows * finished - progress.done)

    def save_block(self, block: Block[Item], progress: Progress | None = None) -> list[Output]:
        finished = list[Output]()
        for _, records in self.produce(self.waiting(block.items)):
            finished += records
            if progress:
                progress.update(self.rows)
        save(block.shard(self.folder), finished, self.kind)
        return finished

    def complete(self, progress: Progress) -> Generator[list[Output], None, None]:
        """Yield the records of each item that has all of them; others are returned, but not saved."""
        for _, records in self.produce(self.waiting(self.items)):
            progress.update(self.rows)
            if len(records) >= self.rows:
                yield records
            else:
                self.results.add(records)
