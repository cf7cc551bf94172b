"""Turn trees of messages (OpenAssistant), with a message or a tree in each row, into conversations or preferences.

A tree gives one conversation, with the best reply at each turn; as preferences, each request with ranked replies."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from stages.formats.readers.row import BadRow, Row
from stages.formats.turns import as_list

FLAT = {"message_id", "parent_id", "text", "role"}
TREE = {"message_tree_id", "prompt"}


def thread_rows(rows: Iterator[Row], compared: bool) -> Iterator[Row]:
    """Yield the conversations or preferences in rows that are messages or trees; yield other rows unchanged."""
    if (first := next(rows, None)) is None:
        return
    keys = first.value.keys() if isinstance(first.value, dict) else set()
    rows = chain([first], rows)
    if keys >= FLAT:
        rows = build_trees(rows)
    elif keys >= TREE and isinstance(first.value["prompt"], dict):
        rows = map(tree_root, rows)
    else:
        yield from rows
        return
    for row in rows:
        if row.error or not isinstance(row.value, dict):
            yield row
        elif compared:
            yield from (replace(row, value=value) for value in ranked_requests(row.value))
        else:
            yield replace(row, value=best_conversation(row.value))


def tree_root(row: Row) -> Row:
    """Return the row of a tree with the first message as its value."""
    root = row.value.get("prompt") if isinstance(row.value, dict) else None
    return replace(row, value=root) if isinstance(root, dict) else row


def build_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the trees of messages: rows whose value is the first message, with its answers in `replies`.
    Broken rows come first. A message whose parent is missing is the root of a tree."""
    nodes, roots, names_in_trees = dict[str, Row](), list[Row](), set[str]()
    for row in rows:
        if row.error or not isinstance(row.value, dict) or not row.value.keys() >= FLAT:
            yield row
        elif (name := str(row.value["message_id"])) in nodes:
            yield replace(row, error=BadRow("message_id", "occurs twice"))
        else:
            nodes[name] = replace(row, value={**row.value, "replies": []})
    for row in nodes.values():
        if (parent := nodes.get(str(row.value["parent_id"]))) is not None:
            parent.value["replies"].append(row.value)
        else:
            roots.append(row)
    pending = [row.value for row in roots]
    for node in pending:  # which grows
        names_in_trees.add(str(node["message_id"]))
        pending += node["replies"]
    error = BadRow("parent_id", "leads back to the message itself")
    for name in [name for name in nodes if name not in names_in_trees]:
        yield replace(nodes[name], value={**nodes[name].value, "replies": []}, error=error)
    yield from roots


def best_conversation(node: dict[str, Any]) -> dict[str, Any]:
    """Return the conversation with the best reply at each turn, and the number of other replies to its turns."""
    turns, other_replies = [as_turn(node)], 0
    while replies := sorted_replies(node):
        node, other_replies = replies[0], other_replies + len(replies) - 1
        turns.append(as_turn(node))
    while len(turns) > 1 and turns[-1]["role"] == "prompter":  # a request without an answer
        turns.pop()
    return {"messages": turns, "other_replies": other_replies or None}


def ranked_requests(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the requests of a tree that have several ranked replies, with these replies."""
    pending: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [([], root)]
    while pending:
        before, node = pending.pop()
        turns, replies = [*before, as_turn(node)], sorted_replies(node)
        pending += [(turns, reply) for reply in reversed(replies)]
        ranked = [reply for reply in replies if rank_of(reply) is not None]
        if node.get("role") == "prompter" and len(ranked) > 1:
            texts, ranks = [reply.get("text") for reply in ranked], [*map(rank_of, ranked)]
            other_replies = len(replies) - len(ranked) or None
            yield {
                "prompt": turns,
                "completions": texts,
                "ranks": ranks,
                "other_replies": other_replies,
            }


def sorted_replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the replies to a message that are not deleted, the best first and those without a rank last."""
    nodes = [reply for reply in as_list(node.get("replies")) if isinstance(reply, dict)]
    replies = [reply for reply in nodes if not reply.get("deleted")]
    unranked = len(replies)
    return sorted(replies, key=lambda reply: rank_of(reply, unranked))


def rank_of(reply: dict[str, Any], missing: float | None = None) -> Any:
    """Return the rank of a reply, 0 for the best, or `missing`. pandas writes a missing rank as NaN."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) and not math.isnan(rank) else missing


def as_turn(node: dict[str, Any]) -> dict[str, Any]:
    return {"role": node.get("role"), "content": node.get("text")}
