"""Tests of reading a pool by prompt: each prompt gets its records in their order, for any order of the tables."""

import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from stages.store.judged_pool import group_by_prompt
from stages.store.records import Candidate, PairLogProbs, Records, save
from stages.store.shards import StreamedTable
from tests.rows import candidate

PROMPTS = [f"p{i}" for i in range(40)]
# every fourth prompt has nothing
OF = [prompt for i, prompt in enumerate(PROMPTS) for _ in range(i % 4)]


def candidates(of: list[str]) -> list[Candidate]:
    return [candidate(p, f"text {i}", 2, candidate_id=f"c{i}") for i, p in enumerate(of)]


@pytest.mark.parametrize("swaps", [0, 1, 30])
def test_every_prompt_has_its_records_in_their_order(swaps: int, tmp_path: Path) -> None:
    draw, of = random.Random(swaps), [*OF]
    for _ in range(swaps):
        i, j = draw.sample(range(len(of)), 2)
        of[i], of[j] = of[j], of[i]
    stored = candidates(of)
    save(tmp_path / "c.parquet", stored, Candidate)
    table = Records(tmp_path / "c.parquet", Candidate)
    expected = [[c for c in stored if c.prompt_id == prompt] for prompt in PROMPTS]
    assert len(table) == len(stored)
    assert [*group_by_prompt(table, PROMPTS)] == [*group_by_prompt(stored, PROMPTS)] == expected


def test_what_shards_made_is_held_as_columns_and_given_as_it_was(tmp_path: Path) -> None:
    """Check that token ids and log-probs take about 4 bytes each. As Python's numbers they take about 30."""
    names = [f"{i}" for i in range(400)]
    table, tokens = StreamedTable(PairLogProbs, lambda p: p.id, names), 300

    def pair(name: str) -> PairLogProbs:
        first = 1000 * (1 + int(name))
        ids = [[*range(first + k, first + k + tokens)] for k in range(3)]
        return PairLogProbs(name, *ids, *([-0.5 * i for i in range(tokens)] for _ in range(2)))

    tracemalloc.start()
    before = pa.total_allocated_bytes()
    for start in range(0, 400, 100):  # the last shard first
        table.add([pair(name) for name in names[300 - start : 400 - start]])
    used_bytes = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert used_bytes < 400 * 5 * tokens * 8
    assert [*table] == [pair(name) for name in names]
