"""Many candidates: what `label`, `pairs` and `select` hold in memory grows by a few bytes for each of them."""

from pathlib import Path

import pytest

from tests.bench.scale import memory_of_chain

# Eight candidates a prompt. The smaller pool fills what a table is written by (10,000 records).
FEW, MANY = 20_000, 150_000
# With Python objects of all candidates, `label` took 808 bytes each, `pairs` 388 and `select` 264 (up to a million).
# Scores, lengths, places and a share of the prompts' ids take about 80. The rest is for memory that an allocator
# keeps, which varies by up to 12 MB from run to run: 90 bytes a candidate here.
MOST_BYTES = 250


@pytest.mark.slow
def test_memory_hardly_grows_with_candidates(tmp_path: Path) -> None:
    few = memory_of_chain(tmp_path / "few", FEW, 1_000)
    many = memory_of_chain(tmp_path / "many", MANY, 1_000)
    assert (many - few) / (MANY - FEW) < MOST_BYTES
