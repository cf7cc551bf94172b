"""Words of a text, in scripts with spaces and without."""

import pytest

from stages.store.text_units import count_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is well-known, isn't it?", 5),
        ("Größe und Maß", 3),
        ("潮汐由月球引起。", 8),
        ("我用 Python 写 code", 5),
        ("", 0),
    ],
)
def test_words_are_counted_where_no_spaces_part_them(text: str, count: int) -> None:
    assert count_words(text) == count
