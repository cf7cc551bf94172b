"""Finished nodes that tell what another node costs. An earlier Plumbline made them of the same settings; or they are
of the same kind, and their seconds have a fixed part and a part that grows with tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.commands.node_settings import flat
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

LATEST = 5  # nodes of a kind are compared: earlier ones ran older code
APART = 2.0  # times the tokens: two nodes this far apart separate the fixed seconds from those per token


class Earlier:
    """Nodes of a store that an earlier Plumbline made of what a node is made of now: they tell what it will cost."""

    def __init__(self, store: Store):
        found = [manifest for _, manifest in store.manifests()]
        self.manifests = {(m["stage"], m["fingerprint"]): m for m in found}
        self.matched = dict[tuple[str, str], bool | None]()

    def of(self, node: Node) -> Manifest | None:
        """The last node of the same settings, whose inputs are so too, where one at least has another version."""
        same = [m for key, m in self.manifests.items() if key[0] == node.stage and self.match(node, m)]
        return same[-1] if same else None

    def match(self, node: Node, manifest: Manifest) -> bool | None:
        """Whether a version differs, or None where anything else does. A key or an input that only one of them has was
        added or renamed between the versions."""
        key = node.fingerprint, manifest["fingerprint"]
        if key not in self.matched:
            self.matched[key] = self._match(node, manifest)
        return self.matched[key]

    def _match(self, node: Node, manifest: Manifest) -> bool | None:
        now, then = flat(node.settings), flat(manifest["settings"])
        if any(now[key] != then[key] for key in now.keys() & then.keys()):
            return None
        other = manifest["version"] != node.version
        if not other and now.keys() != {key for key, value in then.items() if value is not None}:
            return None
        for role in node.inputs.keys() & manifest["inputs"].keys():
            given, before = node.inputs[role], manifest["inputs"][role]
            if given.stage != before["stage"] or given.fingerprint == before["fingerprint"]:
                continue
            earlier = self.manifests.get((before["stage"], before["fingerprint"]))
            found = self.match(given, earlier) if earlier else None
            if found is None:
                return None
            other |= found
        return other


class Kind(NamedTuple):
    """Attributes that two nodes must share for one's time to be scaled to the other."""

    stage: str
    precision: str
    way: str  # labeler, sampler, adapter and forward
    model: str | float | None  # number of parameters, or the path of a reward model
    from_base: bool  # the base model answers, whose answers seldom end by themselves
    reads_tokens: bool  # False where no tokens go through a model, so that nothing scales
    processor: str | None
    processes: int


class Ran(NamedTuple):
    """A finished node: `counted` tokens, and those that the lengths of its input's texts let expect."""

    kind: Kind
    expected: float
    counted: float
    seconds: float

    @property
    def rate(self) -> float:
        """Return seconds per token, or the seconds where no token counts."""
        return self.seconds / (self.counted or 1)


def seconds_of(tokens: float, ran: Sequence[Ran]) -> float:
    """Return the seconds of a node with so many tokens, from nodes of its kind, the oldest first. The fastest node
    counts: other work on a machine, or a kill, makes a node slower, never faster."""
    fastest = sorted(ran[-LATEST:], key=lambda r: r.rate)
    if line := line_through(fastest):
        fixed, per_token = line
        return fixed + per_token * tokens
    return fastest[0].rate * (tokens or 1)


def line_through(fastest: Sequence[Ran]) -> tuple[float, float] | None:
    """The fixed seconds and those per token, by the fastest small and large node; None where they hardly differ."""
    most = max(r.counted for r in fastest)
    large = next(r for r in fastest if r.counted * APART >= most)
    small = next((r for r in fastest if r.counted * APART < most), None)
    if small is None:
        return None
    per_token = (large.seconds - small.seconds) / (large.counted - small.counted)
    fixed = small.seconds - per_token * small.counted
    return (fixed, per_token) if per_token > 0 and fixed >= 0 else None
