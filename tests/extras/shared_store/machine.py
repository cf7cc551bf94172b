"""A machine that builds small nodes: `python -m tests.extras.shared_store.machine ROOT URL COUNT SECONDS LEASE_SECONDS`.

It prints the nodes that it built, and on stderr each node that it begins. It imports no heavy library."""

import random
import sys
import time
from pathlib import Path

from stages.extras.shared_store import lease
from stages.extras.shared_store.mirror import RemoteMirror
from stages.store.node import Node
from stages.store.store import Store
from tests.store.small_nodes import some_nodes


def machine(root: Path, url: str) -> Store:
    return Store(root, mirror=RemoteMirror(url, root))


def build_nodes(store: Store, nodes: list[Node], seconds: float = 0.0) -> list[int]:
    """Build the missing nodes, and return the versions of those that this process built."""
    built = []
    with store.exchange(nodes):
        missing = store.missing(nodes, pull=True)
        for node in (node for node in nodes if node in missing):
            with store.claim(node) as folder:
                if folder is None:
                    continue
                sys.stderr.write(f"building {node.version}\n")
                sys.stderr.flush()
                time.sleep(seconds)
                content = random.Random(node.version).randbytes(node.config.size)
                (folder / "product").write_bytes(content)
                (folder / "copy").write_bytes(content)
                (folder / "inner").mkdir(exist_ok=True)
                (folder / "inner" / "other").write_text(str(node.version))
                store.publish(node, {"ended": time.time(), "metrics": {}})
                built.append(node.version)
    return built


if __name__ == "__main__":
    root, url, count, seconds, lease.SECONDS = (
        Path(sys.argv[1]),
        sys.argv[2],
        *map(float, sys.argv[3:]),
    )
    sys.stderr.write("start\n")
    sys.stderr.flush()
    sys.stdout.write(
        " ".join(map(str, build_nodes(machine(root, url), some_nodes(int(count)), seconds)))
    )
