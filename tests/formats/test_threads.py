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
    again = FLAT[1] | {"text": "again"}
    loop = [FLAT[3] | {"message_id": a, "parent_id": b} for a, b in ("xy", "yx")]
    result = read(lines(tmp_path, [*FLAT, again, *loop]), max_bad=None)
    assert len(result.parsed) == 1
    fields = [row.error.field for row in result.bad_rows if row.error]
    assert fields == ["message_id", "parent_id", "parent_id"]
