"""`stage=gc`: list or remove nodes that no report, sweep, comparison or link in `outputs/latest` needs."""

import logging
import re
from pathlib import Path
from typing import NoReturn

from stages.commands.compare import PAGE, published_nodes
from stages.commands.node_settings import lineage
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.pipeline.provenance import JOB_NODES
from stages.store import locks, sealed_json
from stages.store.manifest import read_manifest
from stages.store.store import Store

log = logging.getLogger(__name__)

LEFT = re.compile(r"([0-9a-f]{12})\.(partial|replaced|pulled)")


def run(cfg: Config, store: Store, *_: object) -> None:
    """List or remove unneeded nodes, and folders that killed commands left.

    A node is needed if a report, a sweep, `outputs/compare.html` or a link in `outputs/latest` depends on it. To free
    its nodes, first delete the folder under `outputs/report/` or `outputs/multirun/`, or the page.
    Raise UserError if the folder is not a store, or a running command uses it and nodes are to be removed."""
    require_store(store)
    if not cfg.gc.remove:
        return list_unreached(store, remove=False)
    with locks.hold_store_alone(store.root) as is_alone:
        work = "" if is_alone else "a command uses it"
        for lock in store.root.glob("cache/locks/*-*"):
            if locks.is_held(lock):  # perhaps by a child that survived its parent
                work = f"{lock.name.replace('-', ' ', 1)} is being built"
        if work:
            problem = f"gc.remove=true: nothing is removed from {store.root}, as {work}"
            raise UserError(f"{problem}. Try again later.")
        list_unreached(store, remove=True)


def list_unreached(store: Store, remove: bool) -> None:
    """List unneeded nodes and leftover folders, and remove them if `remove` is set."""
    for folder in store.published_folders():
        if remove and not read_manifest(folder):
            refuse(f"{folder} cannot be read. Build it again, or delete its folder first")
    nodes = published_nodes(store)
    named = names_in_sweeps(store, remove) | names_in_page(store)
    roots = [key for key in nodes if key[0] == "report" or key[1] in named]
    roots += [(link.name, link.resolve().name) for link in (store.root / "latest").glob("*")]
    reached = {(m["stage"], m["fingerprint"]) for m in lineage(nodes, *roots)}
    unreached = sorted(folder for key, (folder, _) in nodes.items() if key not in reached)
    unreached = [folder for folder in unreached if not is_linked(folder)]
    unreached += [folder for folder in leftover_folders(store) if is_ours(store, folder)]
    done = "removed"
    if not remove:
        done = "that nothing needs, which gc.remove=true removes"
    for folder in unreached:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        log.info("%s  %.1f MiB", folder, size / 2**20)
        if remove:
            remove_folder(folder)
    log.info("%d nodes kept; %d folders %s.", len(reached), len(unreached), done)
    if store.mirror:
        store.mirror.collect(reached, remove)


def refuse(problem: str) -> NoReturn:
    raise UserError(
        f"gc.remove=true: nothing is removed, as what is needed is not known: {problem}."
    )


def names_in_page(store: Store) -> set[str]:
    """Return the fingerprints that the page of `stage=compare` shows."""
    page = store.root / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return {*re.findall(rf"\b{sealed_json.NODE.pattern}\b", text)}


def names_in_sweeps(store: Store, remove: bool) -> set[str]:
    """Return the fingerprints of all jobs of sweeps."""
    names = set[str]()
    for file in store.root.glob(f"multirun/**/{JOB_NODES}"):
        try:
            names |= {*sealed_json.load_json(file, sealed_json.require_keys()).values()}
        except sealed_json.Damaged:
            problem = f"{file} cannot be read. Type the sweep again, or delete its folder first"
            if remove:
                refuse(problem)
            log.warning("warning: %s.", problem)
    return names


def remove_folder(folder: Path) -> None:
    """Remove a folder. Meanwhile a node has a name under which a later gc finds it half-removed."""
    if sealed_json.NODE.fullmatch(folder.name):
        gone = folder.with_suffix(".replaced")
        sealed_json.remove(gone)
        folder = folder.rename(gone)
    sealed_json.remove(folder)


def require_store(store: Store) -> None:
    """Raise UserError if the folder is not a store, as its name may be mistyped."""
    if not store.published_folders() and not (store.root / "cache" / "locks").is_dir():
        raise UserError(
            f"outputs={store.root} is not an artifact store: no node was built there. Correct the path."
        )


def leftover_folders(store: Store) -> list[Path]:
    """Return the folders of nodes that were being built or replaced, and that no command is working on."""
    folders = []
    for folder in sorted(store.root.glob("*/*.*")):
        match = LEFT.fullmatch(folder.name)
        if match and not store.is_locked(folder.parent.name, match[1]):
            folders.append(folder)
    return folders


def is_ours(store: Store, folder: Path) -> bool:
    """Return whether this store created a node's folder: its lock file exists, and no path is a link."""
    stage = folder.parent.name
    is_locked_here = store.lock_file(stage, folder.name[:12]).exists()
    return stage in [*Target] and not is_linked(folder) and folder.is_dir() and is_locked_here


def is_linked(folder: Path) -> bool:
    """Return whether a node's folder, or that of its stage, is a link: what it leads to may be another store's."""
    return folder.is_symlink() or folder.parent.is_symlink()
