"""Tests of reading a pool by prompt: each prompt gets its records in their order, for any order of the tables."""

import random
from pathlib import Path

import pytest

from stages.store.judged_pool import group_by_prompt
from stages.store.records import Candidate, Records, save
from tests.rows import candidate

PROMPTS = [f"p{i}" for i in range(40)]
# every fourth prompt has nothing
OF = [prompt for i, prompt in enumerate(PROMPTS) for _ in range(i % 4)]


def candidates(of: list[str]) -> list[Candidate]:
    return [candidate(p, f"text {i}", 2, candidate_id=f"c{i}") for i, p in enumerate(of)]


@pytest.mark.parametrize("swaps", [0, 1, 30])
def test_every_prompt_has_its_records_in_their_order(swaps: int, tmp_path: Path) -> None:
    draw = random.Random(swaps)
    of = [*OF]
    for _ in range(swaps):
        i, j = draw.sample(range(len(of)), 2)
        of[i], of[j] = of[j], of[i]
    stored = candidates(of)
    save(tmp_path / "c.parquet", stored, Candidate)
    table = Records(tmp_path / "c.parquet", Candidate)
    expected = [[c for c in stored if c.prompt_id == prompt] for prompt in PROMPTS]
    assert len(table) == len(stored)
    assert [*group_by_prompt(table, PROMPTS)] == [*group_by_prompt(stored, PROMPTS)] == expected
