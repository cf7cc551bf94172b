"""Tokenised pairs as columns: they are what was added, in little memory."""

import tracemalloc
from typing import Any

import pyarrow as pa

from stages.training.token_rows import PreferenceRows

TOKENS = 200


def row(i: int) -> dict[str, Any]:
    prompt, chosen, rejected = ([*range(1000 * i + k, 1000 * i + k + TOKENS)] for k in (0, 300, 600))
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected[: 1 + i % TOKENS], "ref": -i / 3}


def test_rows_are_as_they_were_added() -> None:
    rows, given = PreferenceRows(), [row(i) for i in range(601)]
    for i, each in enumerate(given):
        rows.add(f"pair {i}", each)
    assert len(rows) == len(rows.ids) == 601
    assert rows.rows == [*rows.dataset] == given
    lengths = [2 * TOKENS + len(each["rejected_ids"]) for each in given]
    assert rows.tokens("chosen_ids", "prompt_ids", "rejected_ids") == lengths
    assert (PreferenceRows().rows, PreferenceRows().tokens("chosen_ids")) == ([], [])


def test_a_token_takes_four_bytes() -> None:
    """As Python's integers they take 36. Twice four for all else: ids, offsets, rows that wait."""
    tracemalloc.start()
    before, rows = pa.total_allocated_bytes(), PreferenceRows()
    for i in range(1000):
        rows.add(f"pair {i}", row(i))
    tokens = sum(rows.tokens("prompt_ids", "chosen_ids", "rejected_ids"))
    taken = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert taken < 8 * tokens
