"""Tests of the message on dropped rows: the lengths that would keep 90, 98 and 100% of them."""

import re
from math import ceil
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.store.dropped import Dropped, keeping_message
from tests.rows import work


def test_the_named_lengths_keep_what_they_say() -> None:
    lengths = [1 + 7 * i % 101 for i in range(99)]
    too_long = [length for length in lengths if length > 30]
    message = keeping_message("dpo.max_length", len(lengths) - len(too_long), too_long)
    for length, percent in re.findall(r"dpo\.max_length=(\d+) keeps (\d+)%", message):
        kept = sum(each <= int(length) for each in lengths)
        assert kept >= ceil(int(percent) * len(lengths) / 100)
    assert "keeps 100%" in message


def test_no_length_is_named_that_the_model_does_not_read(tmp_path: Path) -> None:
    dropped = Dropped(work(tmp_path), "rows", 0.1, "sft.max_dropped")
    dropped.most = 200
    for tokens in (150, *[180] * 8, 300):
        dropped.add(str(tokens), "longer", tokens, "sft.max_length")
    with pytest.raises(UserError, match=r"sft.max_length=180 keeps 90%\. sft"):
        dropped.settle(1, 1)
