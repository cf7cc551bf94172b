"""Work on many items that a kill interrupts but does not lose: what is done is kept in shards, by the item's id."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Generic, TypeVar

import pyarrow as pa

from stages.store.records import Candidate, Judgement, PairLogProbs, Record, load, save
from stages.store.sealed_json import Damaged, move_aside
from stages.store.table_schema import records_of, table_of
from stages.store.workspace import SCRATCH, Progress, StageDir

Item = TypeVar("Item")
Output = TypeVar("Output", Candidate, Judgement, PairLogProbs)


class StreamedTable(Generic[Record]):
    """What was made of items, as columns: lists of Python's numbers take nine times as much. Its records come in the
    order of `items`, as often as they are asked for."""

    def __init__(self, kind: type[Record], belongs_to: Callable[[Record], str], items: Sequence[str]):
        self.kind, self.belongs_to, self.items = kind, belongs_to, items
        self._tables, self._places = list[pa.Table](), dict[str, tuple[int, int, int]]()

    def add(self, records: Sequence[Record], min_records: int = 1) -> None:
        """Hold records, but of no item that has fewer than `whole`; those of an item stand together."""
        start = 0
        for item, item_records in groupby(records, self.belongs_to):
            count = len([*item_records])
            if count >= min_records:
                self._places[item] = len(self._tables), start, count
            start += count
        self._tables.append(table_of(records, self.kind))

    def __contains__(self, item: str) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[Record]:
        for item in self.items:
            if item in self._places:
                table, start, count = self._places[item]
                yield from records_of(self._tables[table].slice(start, count), self.kind)

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
) -> StreamedTable[Output]:
    """All that `produce` makes of the items; shards of `size` items survive a kill.

    A shard says by its records which items it holds, so that another `size` after a resume does no harm. An item with
    fewer records than `whole` is held by none, and handed out again by the next attempt. Progress is told in rows: so
    many go through the model for each item.
    """
    folder = out / SCRATCH / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    results = StreamedTable(kind, belongs_to, [*map(identify, items)])
    for shard in sorted(folder.glob("*.parquet")):
        try:
            results.add(load(shard, kind), min_records)
        except Damaged as error:
            move_aside(shard, error)
    waiting = [item for item in items if identify(item) not in results]
    shard_number = 1 + max(
        (int(shard.stem) for shard in folder.glob("*.parquet") if shard.stem.isdecimal()), default=-1
    )
    buffer, finished = list[Output](), 0
    with Progress(len(items) * rows, title, "row", done=(len(items) - len(waiting)) * rows) as progress:
        for _, records in produce(waiting):
            progress.update(rows)
            if len(records) < min_records:
                results.add(records)
                continue
            buffer += records
            finished += 1
            if finished == size:
                save(folder / f"{shard_number:06d}.parquet", buffer, kind)
                results.add(buffer)
                shard_number, buffer, finished = shard_number + 1, [], 0
    results.add(buffer)
    return results
