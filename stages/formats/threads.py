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


def threaded(rows: Iterator[Row], compared: bool) -> Iterator[Row]:
    """The conversations in a file's rows, where these are messages or trees; else the rows as they are."""
    if (first := next(rows, None)) is None:
        return
    keys = first.value.keys() if isinstance(first.value, dict) else set()
    rows = chain([first], rows)
    if keys >= FLAT:
        yield from talks(planted(rows), compared)
    elif keys >= TREE and isinstance(first.value["prompt"], dict):
        yield from talks((as_node(row) for row in rows), compared)
    else:
        yield from rows


def as_node(row: Row) -> Row:
    """A tree's row, with its first message as its value."""
    root = row.value.get("prompt") if isinstance(row.value, dict) else None
    return Row(row.file, row.line, root, row.error) if isinstance(root, dict) else row


def planted(rows: Iterable[Row]) -> Iterator[Row]:
    """The trees that messages make, each with its first message as its value and what answers it in `replies`; rows
    that are none, and messages whose parent is not here, as they are."""
    nodes, others = dict[str, Row](), list[Row]()
    for row in rows:
        if row.error or not isinstance(row.value, dict) or not row.value.keys() >= FLAT:
            others.append(row)
        else:
            nodes[str(row.value["message_id"])] = Row(row.file, row.line, {**row.value, "replies": []})
    for row in nodes.values():
        if (parent := nodes.get(str(row.value["parent_id"]))) is not None:
            parent.value["replies"].append(row.value)
        else:
            others.append(row)
    yield from others


def talks(roots: Iterable[Row], compared: bool) -> Iterator[Row]:
    for row in roots:
        if row.error or not isinstance(row.value, dict):
            yield row
            continue
        made = compared_in(row.value) if compared else [best_of(row.value)]
        yield from (Row(row.file, row.line, value) for value in made)


def best_of(node: dict[str, Any]) -> dict[str, Any]:
    """A conversation with the best reply at every turn; how many other replies there were to its turns."""
    turns, others = [turn(node)], 0
    while replies := kept(node):
        node, others = replies[0], others + len(replies) - 1
        turns.append(turn(node))
    while len(turns) > 1 and turns[-1]["role"] == "prompter":  # which nobody answered
        turns.pop()
    return {"messages": turns, "other_replies": others or None}


def compared_in(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The requests of a tree that have several ranked replies."""
    ahead: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [([], root)]
    while ahead:
        before, node = ahead.pop()
        turns, replies = [*before, turn(node)], kept(node)
        ahead += [(turns, each) for each in reversed(replies)]
        ranked = [each for each in replies if isinstance(each.get("rank"), int)]
        if node.get("role") == "prompter" and len(ranked) > 1:
            texts, ranks = ([each.get(key) for each in ranked] for key in ("text", "rank"))
            others = len(replies) - len(ranked) or None
            yield {"prompt": turns, "completions": texts, "ranks": ranks, "other_replies": others}


def kept(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The replies to a message that nobody took back, the best first; those without a rank last."""
    replies = [each for each in node.get("replies") or [] if isinstance(each, dict) and not each.get("deleted")]
    return sorted(replies, key=lambda reply: rank if isinstance(rank := reply.get("rank"), int) else len(replies))


def turn(node: dict[str, Any]) -> dict[str, Any]:
    return {"role": node.get("role"), "content": node.get("text")}
