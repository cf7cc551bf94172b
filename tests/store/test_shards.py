"""Tests of shards: an item with a missing record is produced again, in shards of this and of earlier versions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stages.store import shards
from stages.store.records import Candidate, Records, save
from stages.store.shards import ShardedWork
from stages.store.workspace import SCRATCH
from tests.rows import work

PROMPTS = [f"{i:016x}" for i in range(3)]


def candidates_of(prompt: str, count: int) -> list[Candidate]:
    return [Candidate.from_text(prompt, f"answer {i}", "somebody", "test", 1) for i in range(count)]


@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_an_item_that_an_older_shard_holds_in_part_is_made_again_and_held_once(
    max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check it also with records that stay in their files, since they are too many for the memory."""
    monkeypatch.setattr(shards, "MAX_BYTES", max_bytes)
    folder = tmp_path / SCRATCH / "shards"
    folder.mkdir(parents=True)
    other = candidates_of("f" * 16, 2)  # of a prompt that is asked no longer
    older = [*candidates_of(PROMPTS[0], 2), *candidates_of(PROMPTS[1], 1), *other]
    save(folder / "000000.parquet", older, Candidate)
    shard_calls = list[list[str]]()

    def produce(waiting: Sequence[str]) -> Iterator[tuple[str, list[Candidate]]]:
        shard_calls.append([*waiting])
        for prompt in waiting:
            yield prompt, candidates_of(prompt, 2)

    def of_prompt(candidate):
        return candidate.prompt_id

    for _ in range(2):
        out = work(tmp_path)
        table = ShardedWork(
            PROMPTS, str, produce, Candidate, of_prompt, "test", out, rows=2
        ).in_shards(1)
        assert [*table] == [c for prompt in PROMPTS for c in candidates_of(prompt, 2)]
        assert len(table) == 6
        assert isinstance(table, Records) is (max_bytes == 0)
    assert shard_calls == [PROMPTS[1:], []]
