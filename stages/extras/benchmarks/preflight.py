"""The check of the harness, before a model is asked."""

from collections.abc import Callable

from stages.config.errors import UserError
from stages.config.installation import install_command, is_left_alone
from stages.extras.benchmarks import HARNESS, Benchmark
from stages.store.node import Node
from stages.store.store import Store


def require_harness(node: Node, store: Store) -> None:
    """Raise UserError if the Python of `benchmark.runtime.python` does not have the harness."""
    block = node.config
    if block.engine or is_left_alone(block.runtime.python):
        return
    tasks = f"benchmark.tasks=[{','.join(block.tasks)}]"
    python = block.runtime.python
    if python:
        place = f"benchmark.runtime.python={python}"
        way_out = f"{python} -m pip install '{HARNESS}[ifeval]'"
    else:
        place = "this Python"
        way_out = install_command("benchmark")
    raise UserError(f"{tasks} needs {HARNESS} in {place}. Type: {way_out}.")


CHECKS: dict[Callable[[Node, Store], None], tuple[type, ...]] = {require_harness: (Benchmark,)}
