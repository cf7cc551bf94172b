"""What each source brings to what SFT learns from: rows, and tokens by the lengths of its texts."""

from typing import NamedTuple

from stages.commands.planning.tokens import length_of
from stages.config.blocks.data import Data
from stages.config.choices import Split
from stages.curation.mixing import Amount, amounts
from stages.store.node import Node
from stages.store.store import Store


class Contribution(NamedTuple):
    """Of a source: `rows` for sft that it has, and how many come (`total`); None where nobody has read it yet. Where
    it is `exact`, those that earlier sources have are left out already."""

    name: str
    rows: int | None
    total: int | None
    tokens: float | None
    exact: bool


def contributions(data: Node, store: Store) -> list[Contribution]:
    """What the sources of a `data` node bring. Before it is built, as if they had no row in common."""
    block: Data = data.config
    if not block.sources:  # a node of generated tasks alone may be older than these figures
        return []
    made = store.find(data)
    read = [store.find(source) for source in data.inputs.values()]
    rows = [m["metrics"]["examples"].get(Split.sft, 0) if m else None for m in read]
    rows = [n if n is None else min(n, source.rows or n) for n, source in zip(rows, block.sources, strict=True)]
    found: list[Amount] | None = None
    if made:
        told = made["metrics"]["sources"]
        rows = [each["for_sft"] for each in told]
        found = [Amount(each["for_sft"], each["examples"].get(Split.sft, 0)) for each in told]
    elif known := [n for n in rows if n is not None]:
        found = amounts(block.sources, block.mixture, known) if len(known) == len(rows) else None
    result = []
    for i, (source, node) in enumerate(zip(block.sources, data.inputs.values(), strict=True)):
        total = found[i].total if found else None
        each = sum(length_of(m, store.folder(node), Split.sft)) if total and (m := read[i]) else None
        tokens = None if total is None or each is None else total * each
        result.append(Contribution(source.of_task, rows[i], total, tokens, bool(made)))
    return result
