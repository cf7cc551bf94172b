"""Many candidates: what `label`, `pairs` and `select` hold in memory grows by a few bytes for each of them."""

from pathlib import Path

import pytest

from tests.bench.scale import in_fresh_process

# Eight candidates a prompt. The smaller pool fills what a table is written by (10,000 records).
FEW, MANY = 20_000, 50_000
# With Python objects of all candidates, `label` took 808 bytes each, `pairs` 388 and `select` 264 (up to a million).
# Scores, lengths, places and a share of the prompts' ids take about 80. The rest is for memory that an allocator
# keeps, which varies by 2 to 3 MB from run to run: 100 bytes a candidate here.
MOST_BYTES = 250


@pytest.mark.slow
def test_memory_hardly_grows_with_candidates(tmp_path: Path) -> None:
    few, many = (
        in_fresh_process("chain", tmp_path / f"{n}", n, part=1_000).memory for n in (FEW, MANY)
    )
    assert (many - few) / (MANY - FEW) < MOST_BYTES
