"""Trees of messages, as OpenAssistant has them, a message a row or a tree a row, as conversations.

Of every tree, whoever learns from answers gets one conversation, with the best reply at every turn; whoever compares
them gets every request that has several ranked replies.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from stages.formats.readers.row import Row

FLAT = {"message_id", "parent_id", "text", "role"}
TREE = {"message_tree_id", "prompt"}


def thread_rows(rows: Iterator[Row], compared: bool) -> Iterator[Row]:
    """The conversations in a file's rows, where these are messages or trees; else the rows as they are."""
    if (first := next(rows, None)) is None:
        return
    keys = first.value.keys() if isinstance(first.value, dict) else set()
    rows = chain([first], rows)
    if keys >= FLAT:
        yield from conversations(build_trees(rows), compared)
    elif keys >= TREE and isinstance(first.value["prompt"], dict):
        yield from conversations((tree_root(row) for row in rows), compared)
    else:
        yield from rows


def tree_root(row: Row) -> Row:
    """A tree's row, with its first message as its value."""
    root = row.value.get("prompt") if isinstance(row.value, dict) else None
    return Row(row.file, row.line, root, row.error) if isinstance(root, dict) else row


def build_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """The trees that messages make, each with its first message as its value and what answers it in `replies`; rows
    that are none, and messages whose parent is not here, as they are."""
    nodes, other_rows = dict[str, Row](), list[Row]()
    for row in rows:
        if row.error or not isinstance(row.value, dict) or not row.value.keys() >= FLAT:
            other_rows.append(row)
        else:
            nodes[str(row.value["message_id"])] = Row(row.file, row.line, {**row.value, "replies": []})
    for row in nodes.values():
        if (parent := nodes.get(str(row.value["parent_id"]))) is not None:
            parent.value["replies"].append(row.value)
        else:
            other_rows.append(row)
    yield from other_rows


def conversations(roots: Iterable[Row], compared: bool) -> Iterator[Row]:
    for row in roots:
        if row.error or not isinstance(row.value, dict):
            yield row
            continue
        values = ranked_requests(row.value) if compared else [best_conversation(row.value)]
        yield from (Row(row.file, row.line, value) for value in values)


def best_conversation(node: dict[str, Any]) -> dict[str, Any]:
    """A conversation with the best reply at every turn; how many other replies there were to its turns."""
    turns, other_replies = [as_turn(node)], 0
    while replies := sorted_replies(node):
        node, other_replies = replies[0], other_replies + len(replies) - 1
        turns.append(as_turn(node))
    while len(turns) > 1 and turns[-1]["role"] == "prompter":  # which nobody answered
        turns.pop()
    return {"messages": turns, "other_replies": other_replies or None}


def ranked_requests(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The requests of a tree that have several ranked replies."""
    pending: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [([], root)]
    while pending:
        before, node = pending.pop()
        turns, replies = [*before, as_turn(node)], sorted_replies(node)
        pending += [(turns, reply) for reply in reversed(replies)]
        ranked = [reply for reply in replies if isinstance(reply.get("rank"), int)]
        if node.get("role") == "prompter" and len(ranked) > 1:
            texts, ranks = ([reply.get(key) for reply in ranked] for key in ("text", "rank"))
            other_replies = len(replies) - len(ranked) or None
            yield {"prompt": turns, "completions": texts, "ranks": ranks, "other_replies": other_replies}


def sorted_replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The replies to a message that nobody took back, the best first; those without a rank last."""
    replies = [
        node_reply
        for node_reply in node.get("replies") or []
        if isinstance(node_reply, dict) and not node_reply.get("deleted")
    ]
    return sorted(replies, key=lambda reply: rank if isinstance(rank := reply.get("rank"), int) else len(replies))


def as_turn(node: dict[str, Any]) -> dict[str, Any]:
    return {"role": node.get("role"), "content": node.get("text")}
