"""`stage=gc`: lists what no report, sweep, comparison or link in `outputs/latest` reaches; told to, it removes it."""

import logging
import re
from pathlib import Path

from stages.commands.compare import PAGE, manifests
from stages.commands.node_settings import lineage
from stages.config.errors import UserError
from stages.config.schema import Target
from stages.pipeline.provenance import JOB_NODES
from stages.store import locks, sealed_json
from stages.store.store import Store

log = logging.getLogger(__name__)

LEFT = re.compile(r"([0-9a-f]{12})\.(partial|replaced)")


def collect(store: Store, remove: bool) -> None:
    """List the nodes that no report, sweep, comparison or link in `outputs/latest` reaches, and what kills left.

    To let go of a report or a sweep, delete its folder under `outputs/report/` or `outputs/multirun/` first; of what
    `outputs/compare.html` shows, that page.

    Raises:
        UserError: where the folder is no store; where it is in use, and what its users need cannot be told yet.
    """
    refuse_foreign(store)
    if not remove:
        return look(store, remove)
    with locks.alone(store.root) as free:
        held = [lock for lock in sorted((store.root / "cache" / "locks").glob("*-*")) if locks.is_held(lock)]
        if held or not free:
            work = f"{held[0].name.replace('-', ' ', 1)} is being built in it" if held else "a command uses it"
            raise UserError(f"nothing is removed from {store.root}: {work}. Try again once that has ended.")
        look(store, remove)


def look(store: Store, remove: bool) -> None:
    """List what is not reached, and remove it if told to."""
    nodes = manifests(store)
    starts = [key for key in nodes if key[0] == "report"]
    starts += [(link.name, link.resolve().name) for link in (store.root / "latest").glob("*")]
    files = store.root.glob(f"multirun/**/{JOB_NODES}")
    jobs = [sealed_json.recall(file, sealed_json.having()) or {} for file in files]
    named = {fingerprint for job in jobs for fingerprint in job.values()} | compared(store.root / PAGE)
    starts += [key for key in nodes if key[1] in named]
    reached = {(m["stage"], m["fingerprint"]) for m in lineage(nodes, *starts)}
    idle = sorted(folder for key, (folder, _) in nodes.items() if key not in reached)
    idle += [folder for folder in left_behind(store) if is_ours(store, folder)]
    for folder in idle:
        log.info("%s  %.1f MiB%s", folder, size(folder) / 2**20, "  removed" if remove else "")
        if remove:
            if sealed_json.NODE.fullmatch(folder.name):  # killed by half, what is left of it is found again
                gone = folder.with_suffix(".replaced")
                sealed_json.remove(gone)
                folder = folder.rename(gone)
            sealed_json.remove(folder)
    left = "not reached by a report, a sweep, a comparison or a latest link; gc.remove=true removes them"
    log.info("%d nodes kept; %d folders %s.", len(reached), len(idle), "removed" if remove else left)


def compared(page: Path) -> set[str]:
    """The fingerprints that a comparison shows, if there is one."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return set(re.findall(rf"\b{sealed_json.NODE.pattern}\b", text))


def refuse_foreign(store: Store) -> None:
    """Raise UserError for a folder that is no store: its name may be mistyped."""
    if not store.published() and not (store.root / "cache" / "locks").is_dir():
        raise UserError(f"outputs={store.root} is no artifact store: no node was ever built there.")


def left_behind(store: Store) -> list[Path]:
    """What is named like a node in the making, or one that was being replaced, and that nobody works on."""
    named = [(p, found[1]) for p in store.root.glob("*/*.*") if (found := LEFT.fullmatch(p.name))]
    return sorted(p for p, fingerprint in named if not store.is_locked(p.parent.name, fingerprint))


def is_ours(store: Store, folder: Path) -> bool:
    """Whether this store made a folder: it has, or had, a lock for that node. No link is followed."""
    stage, fingerprint = folder.parent.name, folder.name[:12]
    linked = any(path.is_symlink() for path in (folder, folder.parent))
    return stage in [*Target] and not linked and folder.is_dir() and store.lock_file(stage, fingerprint).exists()


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
