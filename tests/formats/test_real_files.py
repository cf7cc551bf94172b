"""Damaged files of the shared data: the rows that cannot be used are found, and no others."""

import pytest

from stages.config.errors import UserError
from tests.formats.reading import read
from tests.helpers import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")

# Lines of the malformed files that cannot be used, from KEY.json beside them.
BAD_LINES = {
    "broken_lines.jsonl": [31, 50, 51, 56, 73, 81],
    "odd_unicode.jsonl": [21],
    "wrong_types.jsonl": [4, 6, 8, 10, 12, 16, 18, 20, 24, 26, 28, 30],
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_damaged_rows_are_found_and_no_others(name: str) -> None:
    result = read(DATA / "dirty/malformed" / name)
    assert [row.line for row in result.bad_rows] == BAD_LINES[name]
    assert result.rows == len(result.parsed) + len(result.bad_rows)


def test_a_file_in_windows_1252_is_read_whole_once_that_is_said() -> None:
    file = DATA / "dirty/malformed/cp1252.jsonl"
    with pytest.raises(UserError, match="encoding=cp1252"):
        read(file)
    assert not read(file, encoding="cp1252").bad_rows
