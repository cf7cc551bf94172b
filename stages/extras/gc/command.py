"""`stage=gc`: list or remove nodes that no report, sweep, comparison or link in `outputs/latest` needs.

To free nodes, first delete the folder under `outputs/report/` or `outputs/multirun/`, or `outputs/compare.html`.
Unfinished work of the last week stays, with the nodes that it was made from."""

import logging
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from stages.commands.node_settings import COMPARE_PAGE, Nodes, lineage, nodes_oldest_first
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_table import Target
from stages.extras.gc import GC
from stages.pipeline.provenance import JOB_NODES, fingerprints_of_job
from stages.store import locks, sealed_json
from stages.store.manifest import folder_problem, read_manifest
from stages.store.store import INPUTS, Store, require_store
from stages.store.workspace import RESUMED, SCRATCH

log = logging.getLogger(__name__)

KEPT_SECONDS = 7 * 86_400.0  # younger work may belong to a run that is not finished
HALF_BUILT_OR_REPLACED = re.compile(r"(?P<fingerprint>[0-9a-f]{12})\.(partial|replaced|pulled)")


def run(cfg: Config, store: Store, *_: object) -> None:
    """List or remove unneeded nodes and leftover folders. Raise UserError if the folder is not a store, or a running
    command uses it and nodes are to be removed."""
    require_store(store)
    settings: GC = vars(cfg)["gc"]
    if not settings.remove:
        return list_or_remove_unneeded(store, remove=False)
    with locks.hold_store_alone(store.root) as is_alone:
        why_not = "" if is_alone else "a command uses it"
        for lock in store.root.glob("cache/locks/*-*"):
            if locks.is_held(lock):  # perhaps by a child that survived its parent
                why_not = f"{lock.name.replace('-', ' ', 1)} is being built"
        if why_not:
            problem = f"gc.remove=true: nothing is removed from {store.root}, as {why_not}"
            raise UserError(f"{problem}. Try again later.")
        list_or_remove_unneeded(store, remove=True)


def list_or_remove_unneeded(store: Store, remove: bool) -> None:
    """List nodes that no report, sweep, comparison or link in `outputs/latest` depends on, and leftover folders. Remove
    them if `remove` is set."""
    for folder in store.node_folders():
        problem = folder_problem(folder)
        if problem and remove:
            refuse(f"{folder} cannot be read. Build it again, or delete its folder first")
        if problem:
            sealed_json.warn_once(problem)
    nodes = nodes_oldest_first(store)
    named = fingerprints_in_sweeps(store, remove) | fingerprints_compared(store)
    kept = [key for key in nodes if key[0] == "report" or key[1] in named]
    kept += [(link.name, link.resolve().name) for link in (store.root / "latest").glob("*")]
    leftovers = [f for f in leftover_folders(store) if is_created_here(store, f)]
    resumable = [folder for folder in leftovers if is_resumable(folder)]
    for folder in resumable:
        kept += inputs_of_unfinished(folder, nodes)
    needed = {(m["stage"], m["fingerprint"]) for m in lineage(nodes, *kept)}
    unneeded = sorted(folder for key, (folder, _) in nodes.items() if key not in needed)
    # what a link leads to may be another store's
    unneeded = [folder for folder in unneeded if not is_linked(folder)]
    unneeded += [folder for folder in leftovers if folder not in resumable]
    done = "removed"
    if not remove:
        done = "that nothing needs, which gc.remove=true removes"
    for folder in resumable:
        log.info(
            "%s  %.1f MiB  stays: the command that was stopped resumes from it. "
            "To remove it anyhow, delete the folder.",
            folder,
            size_of(folder) / 2**20,
        )
    for folder in unneeded:
        log.info("%s  %.1f MiB", folder, size_of(folder) / 2**20)
        if remove:
            remove_folder(folder)
    log.info("%d nodes kept; %d folders %s.", len(needed), len(unneeded), done)
    if store.mirror:
        store.mirror.collect(needed, remove, KEPT_SECONDS)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_resumable(folder: Path) -> bool:
    """Return whether a leftover folder holds work of the last week that the same command does not repeat."""
    if folder.suffix != ".partial":
        return False  # a replaced node, or a copy of what the remote has
    files = [path for name in RESUMED for path in (folder / SCRATCH / name).rglob("*")]
    is_complete = read_manifest(folder) and not folder.with_suffix("").exists()
    if is_complete:  # the next command renames it
        files.append(folder / "manifest.json")
    works = [path for path in files if path.is_file() and path.suffix != ".lock"]
    newest = max((path.stat().st_mtime for path in works), default=0.0)
    return time.time() - newest < KEPT_SECONDS


def inputs_of_unfinished(folder: Path, nodes: Nodes) -> list[tuple[str, str]]:
    """Return the nodes with the content that an unfinished node is made from: with other content it starts again."""
    digests = dict[str, str]()
    with suppress(FileNotFoundError, sealed_json.Damaged):
        manifest = read_manifest(folder)
        if manifest:
            digests = {role: each["digest"] for role, each in manifest["inputs"].items()}
        else:
            digests = sealed_json.load_json(folder / SCRATCH / INPUTS, sealed_json.require_keys())
    return [key for key, (_, manifest) in nodes.items() if manifest["digest"] in digests.values()]


def refuse(problem: str) -> NoReturn:
    raise UserError(
        f"gc.remove=true: nothing is removed, as what is needed is not known: {problem}."
    )


def fingerprints_compared(store: Store) -> set[str]:
    """Return the fingerprints that the page of `stage=compare` shows."""
    page = store.root / COMPARE_PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return {*re.findall(rf"\b{sealed_json.NODE.pattern}\b", text)}


def fingerprints_in_sweeps(store: Store, remove: bool) -> set[str]:
    """Return the fingerprints of the nodes of all jobs of sweeps."""
    fingerprints = set[str]()
    for file in store.root.glob(f"multirun/**/{JOB_NODES}"):
        try:
            fingerprints |= sealed_json.load_json(file, fingerprints_of_job)
        except sealed_json.Damaged:
            problem = f"{file} cannot be read. Type the sweep again, or delete its folder first"
            if remove:
                refuse(problem)
            log.warning("warning: %s.", problem)
    return fingerprints


def remove_folder(folder: Path) -> None:
    """Remove a folder. Meanwhile a node has a name under which a later gc finds it half-removed."""
    if sealed_json.NODE.fullmatch(folder.name):
        leftover_name = folder.with_suffix(".replaced")
        sealed_json.remove(leftover_name)
        folder = folder.rename(leftover_name)
    sealed_json.remove(folder)


def leftover_folders(store: Store) -> list[Path]:
    """Return the folders of nodes that were being built or replaced, and that no command is working on."""
    folders = []
    for folder in sorted(store.root.glob("*/*.*")):
        match = HALF_BUILT_OR_REPLACED.fullmatch(folder.name)
        if match and not store.is_locked(folder.parent.name, match["fingerprint"]):
            folders.append(folder)
    return folders


def is_created_here(store: Store, folder: Path) -> bool:
    """Return whether this store created a node's folder: its lock file exists, and no path is a link."""
    stage = folder.parent.name
    has_lock_file = store.lock_file(stage, folder.name[:12]).exists()
    return stage in [*Target] and not is_linked(folder) and folder.is_dir() and has_lock_file


def is_linked(node_folder: Path) -> bool:
    """Return whether a node's folder, or that of its stage, is a link."""
    stage_folder = node_folder.parent
    return node_folder.is_symlink() or stage_folder.is_symlink()
