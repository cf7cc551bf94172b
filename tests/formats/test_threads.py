"""Trees of messages become conversations."""

from pathlib import Path
from typing import Any

import pytest

from stages.formats.column_mapping import Wanted
from tests.formats.reading import lines, read, said

# name, parent, who, rank: a request with two answers, the better of which is asked about and answered again
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
    return {**message, "replies": [tree(each) for each in FLAT if each["parent_id"] == message["message_id"]]}


FILES = {
    "a message a row": FLAT,
    "in any order": FLAT[::-1],
    "a tree a row": [{"message_tree_id": "q", "prompt": tree(FLAT[0])}],
}


@pytest.mark.parametrize("rows", FILES.values(), ids=FILES)
def test_a_tree_is_a_conversation_with_the_best_replies(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    found = read(lines(tmp_path, rows))
    assert said(found) == [(["q", "best", "more?"], ["no"], None)]
    assert [*found.unused] == ["other_replies"]


@pytest.mark.parametrize("rows", FILES.values(), ids=FILES)
def test_ranked_replies_are_preferences(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    found = read(lines(tmp_path, rows), Wanted.preferences)
    assert said(found) == [(["q"], ["best", "worse"], [1, 0])]


def test_rows_that_are_no_messages_keep_their_reasons(tmp_path: Path) -> None:
    file = lines(tmp_path, FLAT)
    file.write_text(file.read_text() + "{broken\n[1]\n")
    found = read(file)
    assert len(found.made) == 1
    assert [row.line for row in found.bad] == [8, 9]
