"""Trees of messages become conversations."""

from pathlib import Path
from typing import Any

import pytest

from stages.formats.column_mapping import Purpose
from tests.formats.reading import lines, read, summarize

# Name, parent, role and rank: a request with three replies, the best of which has a request and a reply of its own.
MESSAGES = [
    ("q", None, "prompter", None),
    ("worse", "q", "assistant", 1),
    ("best", "q", "assistant", 0),
    ("taken back", "q", "assistant", 2),
    ("more?", "best", "prompter", None),
    ("no", "more?", "assistant", None),
    ("thanks", "no", "prompter", None),
]
FLAT: list[dict[str, Any]] = [
    {
        "message_id": name,
        "parent_id": parent,
        "text": name,
        "role": role,
        "rank": rank,
        "deleted": name == "taken back",
    }
    for name, parent, role, rank in MESSAGES
]


def tree(message: dict[str, Any]) -> dict[str, Any]:
    return {
        **message,
        "replies": [tree(each) for each in FLAT if each["parent_id"] == message["message_id"]],
    }


FILES = {
    "a message a row": FLAT,
    "in any order": FLAT[::-1],
    "a tree a row": [{"message_tree_id": "q", "prompt": tree(FLAT[0])}],
}


@pytest.mark.parametrize("rows", FILES.values(), ids=FILES)
def test_a_tree_is_a_conversation_with_the_best_replies(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = read(lines(tmp_path, rows))
    assert summarize(result) == [(["q", "best", "more?"], ["no"], None)]
    assert [*result.unused_columns] == ["other_replies"]


@pytest.mark.parametrize("rows", FILES.values(), ids=FILES)
def test_ranked_replies_are_preferences(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    result = read(lines(tmp_path, rows), Purpose.preferences)
    assert summarize(result) == [(["q"], ["best", "worse"], [1, 0])]


def test_messages_outside_of_every_tree_are_named(tmp_path: Path) -> None:
    """A repeated id, and two messages each of which answers the other."""
    loop = [
        FLAT[3] | {"message_id": name, "parent_id": parent}
        for name, parent in (("a", "b"), ("b", "a"))
    ]
    result = read(lines(tmp_path, [*FLAT, FLAT[1] | {"text": "again"}, *loop]), max_bad=None)
    assert summarize(result) == [(["q", "best", "more?"], ["no"], None)]
    n = len(FLAT)
    errors = [(row.line, row.error.field) for row in result.bad_rows if row.error]
    assert errors == [(n + 1, "message_id"), (n + 2, "parent_id"), (n + 3, "parent_id")]


def test_rows_that_are_no_messages_keep_their_reasons(tmp_path: Path) -> None:
    file = lines(tmp_path, FLAT)
    file.write_text(file.read_text() + "{broken\n[1]\n")
    result = read(file)
    assert len(result.parsed) == 1
    assert [row.line for row in result.bad_rows] == [8, 9]
