"""`stage=gc`: what neither a kept report nor `outputs/latest` reaches. It lists, and removes only when told to."""

import logging
import shutil
from pathlib import Path

from stages.config.errors import UserError
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint


def collect(store: Store, remove: bool) -> None:
    """List every node that no report in the store and no link in `outputs/latest` reaches, and abandoned partials.

    To let go of a report, delete its folder under `outputs/report/` first.
    """
    locks = (store.root / "cache" / "locks").glob("*-*")
    if remove and any(store.is_locked(*lock.name.split("-", 1)) for lock in locks):
        raise UserError("something is being built in this store; what it needs cannot be told yet. Try again later.")
    nodes = {(m["stage"], m["fingerprint"]): (folder, m) for folder, m in store.manifests()}
    reached: set[Key] = set()
    waiting: list[Key] = [key for key in nodes if key[0] == "report"]
    waiting += [(link.name, link.resolve().name) for link in (store.root / "latest").glob("*")]
    while waiting:
        key = waiting.pop()
        if key in nodes and key not in reached:
            reached.add(key)
            waiting += [(i["stage"], i["fingerprint"]) for i in nodes[key][1]["inputs"].values()]
    idle = sorted(folder for key, (folder, _) in nodes.items() if key not in reached)
    idle += sorted(p for p in store.root.glob("*/*.partial") if not store.is_locked(p.parent.name, p.stem))
    idle += sorted(store.root.glob("*/*.replaced"))
    for folder in idle:
        log.info("%s  %.1f MiB%s", folder, size(folder) / 2**20, "  removed" if remove else "")
        if remove:
            gone = folder.with_suffix(".replaced")  # by half, it is no node without a manifest, but found again
            if gone != folder:
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    verb = "removed" if remove else "not reached by a report or a latest link; gc.remove=true removes them"
    log.info("%d nodes kept; %d folders %s.", len(reached), len(idle), verb)


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
