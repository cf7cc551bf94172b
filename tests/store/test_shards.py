"""Tests of shards: an item with a missing record is produced again, in shards of this and of earlier versions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.store.records import Candidate, save
from stages.store.shards import produce_in_shards
from stages.store.workspace import SCRATCH, StageDir

PROMPTS = [f"{i:016x}" for i in range(3)]


def candidates_of(prompt: str, count: int) -> list[Candidate]:
    return [Candidate.from_text(prompt, f"answer {i}", "somebody", "test", 1) for i in range(count)]


def test_an_item_that_an_older_shard_holds_in_part_is_made_again_and_held_once(tmp_path: Path) -> None:
    folder = tmp_path / SCRATCH / "shards"
    folder.mkdir(parents=True)
    save(folder / "000000.parquet", candidates_of(PROMPTS[0], 2) + candidates_of(PROMPTS[1], 1), Candidate)
    shard_calls = list[list[str]]()

    def produce(waiting: Sequence[str]) -> Iterator[tuple[str, list[Candidate]]]:
        shard_calls.append([*waiting])
        for prompt in waiting:
            yield prompt, candidates_of(prompt, 2)

    def all_of_them() -> list[Candidate]:
        work = StageDir(tmp_path, lambda metrics, step: None)
        return [
            *produce_in_shards(PROMPTS, str, produce, Candidate, lambda c: c.prompt_id, 1, "test", work, min_records=2)
        ]

    for _ in range(2):
        assert all_of_them() == [c for prompt in PROMPTS for c in candidates_of(prompt, 2)]
    assert shard_calls == [PROMPTS[1:], []]
