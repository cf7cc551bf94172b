"""Which published node an earlier Plumbline made of what a node is made of now."""

from stages.commands.node_settings import flat
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store


class Earlier:
    """Nodes of a store that an earlier Plumbline made of what a node is made of now: they tell what it will cost."""

    def __init__(self, store: Store):
        found = [manifest for _, manifest in store.manifests()]
        self.manifests = {(m["stage"], m["fingerprint"]): m for m in found}
        self.matched = dict[tuple[str, str], bool | None]()

    def of(self, node: Node) -> Manifest | None:
        """The last node of the same settings, from inputs of which that holds, of which one at least has another
        version."""
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
