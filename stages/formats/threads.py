"""Turn trees of messages (OpenAssistant), with a message or a tree in each row, into conversations or preferences.

A tree gives one conversation, with the best reply at each turn; as preferences, each request with ranked replies."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from stages.formats.readers.row import BadRow, Row

FLAT = {"message_id", "parent_id", "text", "role"}
TREE = {"message_tree_id", "prompt"}


def thread_rows(rows: Iterator[Row], compared: bool) -> Iterator[Row]:
    """Yield the conversations or preferences in rows that are messages or trees; yield other rows unchanged."""
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
    """Return the row of a tree with the first message as its value."""
    root = row.value.get("prompt") if isinstance(row.value, dict) else None
    return Row(row.file, row.line, root, row.error) if isinstance(root, dict) else row


def build_trees(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the trees of messages: rows whose value is the first message, with its answers in `replies`.
    Broken rows come first. A message whose parent is missing is the root of a tree."""
    nodes, other_rows, roots = dict[str, Row](), list[Row](), list[Row]()
    for row in rows:
        if row.error or not isinstance(row.value, dict) or not row.value.keys() >= FLAT:
            other_rows.append(row)
        elif (name := str(row.value["message_id"])) in nodes:
            other_rows.append(replace(row, error=BadRow("message_id", "occurs twice")))
        else:
            nodes[name] = Row(row.file, row.line, {**row.value, "replies": []})
    for row in nodes.values():
        if (parent := nodes.get(str(row.value["parent_id"]))) is not None:
            parent.value["replies"].append(row.value)
        else:
            roots.append(row)
    pending, in_trees = [row.value for row in roots], set[str]()
    for node in pending:  # which grows
        in_trees.add(str(node["message_id"]))
        pending += node["replies"]
    own_parents = [row for name, row in nodes.items() if name not in in_trees]
    error = BadRow("parent_id", "leads back to the message itself")
    yield from other_rows
    yield from (Row(row.file, row.line, {**row.value, "replies": []}, error) for row in own_parents)
    yield from roots


def conversations(roots: Iterable[Row], compared: bool) -> Iterator[Row]:
    for row in roots:
        if row.error or not isinstance(row.value, dict):
            yield row
            continue
        values = ranked_requests(row.value) if compared else [best_conversation(row.value)]
        yield from (Row(row.file, row.line, value) for value in values)


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
    nodes = [reply for reply in node.get("replies") or [] if isinstance(reply, dict)]
    replies = [reply for reply in nodes if not reply.get("deleted")]
    return sorted(
        replies, key=lambda reply: len(replies) if (rank := rank_of(reply)) is None else rank
    )


def rank_of(reply: dict[str, Any]) -> int | None:
    """Return the rank of a reply, 0 for the best. pandas writes a column in which ranks are missing as 0.0, 1.0."""
    rank = reply.get("rank")
    return (
        int(rank)
        if isinstance(rank, int) or (isinstance(rank, float) and rank.is_integer())
        else None
    )


def as_turn(node: dict[str, Any]) -> dict[str, Any]:
    return {"role": node.get("role"), "content": node.get("text")}
