"""Tests of the message on dropped rows: the lengths that would keep 90, 98 and 100% of them."""

from math import ceil
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.store.dropped import Dropped, keeping_message
from tests.rows import work


@pytest.mark.parametrize("count", [1, 3, 40, 99, 250])
@pytest.mark.parametrize("limit", [0, 30, 60, 95])
def test_the_named_lengths_keep_what_they_say(count: int, limit: int) -> None:
    lengths = [1 + 7 * i % 101 for i in range(count)]
    too_long = [length for length in lengths if length > limit]
    words = keeping_message("dpo.max_length", count - len(too_long), too_long).split(", ")
    for word in filter(None, words):
        setting, _, share = word.partition(" keeps ")
        length, percent = int(setting.removeprefix("dpo.max_length=")), int(share.rstrip("%"))
        kept = sum(each <= length for each in lengths)
        assert kept >= ceil(percent * count / 100) > sum(each < length for each in lengths)
        assert length > limit
    assert bool(words[0]) is bool(too_long)


def test_no_length_is_named_that_the_model_does_not_read(tmp_path: Path) -> None:
    dropped = Dropped(work(tmp_path), "rows", 0.1, "sft.max_dropped")
    dropped.most = 200
    for tokens in (150, *[180] * 8, 300):
        dropped.add(str(tokens), "longer", tokens, "sft.max_length")
    with pytest.raises(UserError, match=r"sft.max_length=180 keeps 90%\. sft"):
        dropped.settle(1, 1)
