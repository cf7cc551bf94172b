"""Work on many items that a kill interrupts but does not lose: what is done is kept in shards, by the item's id."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stages.store.kept import Damaged, set_aside
from stages.store.records import Candidate, Judgement, PairLogProbs, load, save
from stages.store.work import SCRATCH, Progress, Work

Item = TypeVar("Item")
Made = TypeVar("Made", Candidate, Judgement, PairLogProbs)


def in_shards(
    items: Sequence[Item],
    identify: Callable[[Item], str],
    produce: Callable[[Sequence[Item]], Iterator[tuple[Item, list[Made]]]],
    kind: type[Made],
    belongs_to: Callable[[Made], str],
    size: int,
    title: str,
    out: Work,
    rows: int = 1,
    whole: int = 1,
) -> list[Made]:
    """All that `produce` makes of the items, in the order of the items; shards of `size` items survive a kill.

    A shard says by its records which items it holds, so that another `size` after a resume does no harm. An item with
    fewer records than `whole` is held by none, and handed out again by the next attempt. Progress is told in rows: so
    many go through the model for each item.
    """
    folder = out / SCRATCH / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Made]] = {}
    for shard in sorted(folder.glob("*.parquet")):
        try:
            records = load(shard, kind)
        except Damaged as error:
            set_aside(shard, error)
            continue
        held = dict[str, list[Made]]()
        for record in records:
            held.setdefault(belongs_to(record), []).append(record)
        made |= {key: found for key, found in held.items() if len(found) >= whole}
    waiting = [item for item in items if identify(item) not in made]
    shard_number = 1 + max(
        (int(shard.stem) for shard in folder.glob("*.parquet") if shard.stem.isdecimal()), default=-1
    )
    buffer, finished = list[Made](), 0
    with Progress(len(items) * rows, title, "row", done=(len(items) - len(waiting)) * rows) as progress:
        for item, records in produce(waiting):
            made[identify(item)] = records
            progress.update(rows)
            if len(records) < whole:
                continue
            buffer += records
            finished += 1
            if finished == size:
                save(folder / f"{shard_number:06d}.parquet", buffer, kind)
                shard_number, buffer, finished = shard_number + 1, [], 0
    return [record for item in items for record in made[identify(item)]]
