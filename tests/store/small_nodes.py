"""Small nodes, for tests of the store. It imports no heavy library."""

from dataclasses import dataclass

from stages.store.node import Node


@dataclass
class Block:
    """A block of settings."""

    size: int = 3000


def some_nodes(count: int) -> list[Node]:
    return [Node("pairs", version, Block()) for version in range(1, count + 1)]
