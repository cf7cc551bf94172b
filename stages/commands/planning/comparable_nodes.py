"""Find finished nodes that predict the cost of another node: nodes with the same settings by an earlier version, or
nodes of the same kind, whose time has a fixed part and a part per token."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.commands.node_settings import flatten
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

LATEST = 5  # nodes of a kind that count; earlier ones ran older code
APART = 2.0  # factor in tokens by which two nodes must differ to separate fixed seconds from seconds per token


class EarlierVersions:
    """The nodes of a store, to find one with the same settings by an earlier version, which predicts the cost."""

    def __init__(self, store: Store):
        manifests = [manifest for _, manifest in store.manifests()]
        self.manifests = {(m["stage"], m["fingerprint"]): m for m in manifests}
        self.matched = dict[tuple[str, str], bool | None]()

    def last_match(self, node: Node) -> Manifest | None:
        """Return the last node with the same settings and inputs, if it or an input has another version."""
        same = [m for key, m in self.manifests.items() if key[0] == node.stage and self.match(node, m)]
        return same[-1] if same else None

    def match(self, node: Node, manifest: Manifest) -> bool | None:
        """Return whether a version differs, or None if anything else does. A key or an input that only one of the two
        nodes has was added or renamed between the versions."""
        key = node.fingerprint, manifest["fingerprint"]
        if key not in self.matched:
            self.matched[key] = self._match(node, manifest)
        return self.matched[key]

    def _match(self, node: Node, manifest: Manifest) -> bool | None:
        now, then = flatten(node.settings), flatten(manifest["settings"])
        if any(now[key] != then[key] for key in now.keys() & then.keys()):
            return None
        version_differs = manifest["version"] != node.version
        if not version_differs and now.keys() != {key for key, value in then.items() if value is not None}:
            return None
        for role in node.inputs.keys() & manifest["inputs"].keys():
            node_input, earlier_input = node.inputs[role], manifest["inputs"][role]
            if node_input.stage != earlier_input["stage"] or node_input.fingerprint == earlier_input["fingerprint"]:
                continue
            earlier = self.manifests.get((earlier_input["stage"], earlier_input["fingerprint"]))
            input_differs = self.match(node_input, earlier) if earlier else None
            if input_differs is None:
                return None
            version_differs |= input_differs
        return version_differs


class Kind(NamedTuple):
    """The attributes that two nodes must share before the time of one is scaled to the other."""

    stage: str
    precision: str
    way: str  # the values of labeler, sampler, adapter and forward
    processes: int
    model: str | float | None  # number of parameters, or the path of a reward model
    from_base: bool  # the base model answers, which rarely ends an answer
    reads_tokens: bool  # False if no tokens go through a model, so time does not scale
    processor: str | None


class FinishedNode(NamedTuple):
    """A finished node with its seconds, its `counted` tokens, and the tokens `expected` from its input's lengths."""

    kind: Kind
    expected: float
    counted: float
    seconds: float

    @property
    def rate(self) -> float:
        """The seconds per token, or the seconds if no tokens count."""
        return self.seconds / (self.counted or 1)


def expected_seconds(tokens: float, finished: Sequence[FinishedNode]) -> float:
    """Return the seconds of a node with this many tokens, from nodes of its kind, the oldest first. The fastest node
    counts, as other work on a machine or a kill makes nodes slower, never faster."""
    fastest = sorted(finished[-LATEST:], key=lambda r: r.rate)
    if line := line_through(fastest):
        fixed, per_token = line
        return fixed + per_token * tokens
    return fastest[0].rate * (tokens or 1)


def line_through(fastest: Sequence[FinishedNode]) -> tuple[float, float] | None:
    """Return fixed seconds and seconds per token of the fastest small and large node; None if they are close."""
    most = max(r.counted for r in fastest)
    large = next(r for r in fastest if r.counted * APART >= most)
    small = next((r for r in fastest if r.counted * APART < most), None)
    if small is None:
        return None
    per_token = (large.seconds - small.seconds) / (large.counted - small.counted)
    fixed = small.seconds - per_token * small.counted
    return (fixed, per_token) if per_token > 0 and fixed >= 0 else None
