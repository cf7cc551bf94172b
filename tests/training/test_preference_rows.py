"""Tests of tokenised pairs as columns: rows come back as added, and take little memory."""

import tracemalloc
from typing import Any

import pyarrow as pa

from stages.training.token_rows import PreferenceRows

TOKENS = 200


def row(i: int) -> dict[str, Any]:
    prompt, chosen, rejected = (
        [*range(1000 * i + k, 1000 * i + k + TOKENS)] for k in (0, 300, 600)
    )
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected[: 1 + i % TOKENS],
        "ref": -i / 3,
    }


def test_rows_are_as_they_were_added() -> None:
    rows, added_rows = PreferenceRows(), [row(i) for i in range(601)]
    for i, each in enumerate(added_rows):
        rows.add(f"pair {i}", each)
    assert len(rows) == len(rows.ids) == 601
    assert rows.rows == [*rows.dataset] == added_rows
    lengths = [2 * TOKENS + len(each["rejected_ids"]) for each in added_rows]
    assert rows.tokens("chosen_ids", "prompt_ids", "rejected_ids") == lengths
    assert (PreferenceRows().rows, PreferenceRows().tokens("chosen_ids")) == ([], [])


def test_a_token_takes_four_bytes() -> None:
    """Python integers take 36 bytes. The bound is twice four for ids, offsets and pending rows."""
    tracemalloc.start()
    before, rows = pa.total_allocated_bytes(), PreferenceRows()
    for i in range(1000):
        rows.add(f"pair {i}", row(i))
    tokens = sum(rows.tokens("prompt_ids", "chosen_ids", "rejected_ids"))
    taken_bytes = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert taken_bytes < 8 * tokens
