"""`stage=doctor`: every file of every published node, against the digest that its manifest has of it."""

import logging
from pathlib import Path

from stages.commands import gc
from stages.config.errors import UserError
from stages.config.schema import Target
from stages.store.manifest import Manifest, hashed, manifest_of
from stages.store.sealed_json import NODE, Damaged, rebuild_command
from stages.store.store import Store
from stages.store.workspace import Progress

log = logging.getLogger(__name__)

MIB = 2**20


def examine(store: Store) -> None:
    """Say what is damaged with the command that builds it again, and what lies in the store without being a node.

    Raises:
        UserError: where something is damaged, or the folder is no store.
    """
    gc.refuse_foreign(store)
    nodes, wrong = dict[Path, Manifest](), list[str]()
    for folder in sorted(store.published()):
        try:
            nodes[folder] = manifest_of(folder)
        except Damaged as error:
            wrong.append(str(error))
    sizes = {folder: sum(entry["bytes"] for entry in m["files"].values()) for folder, m in nodes.items()}
    total = sum(sizes.values())
    with Progress(round(total / MIB), "doctor", "MiB") as progress:
        for folder, manifest in nodes.items():
            torn = [(name, why) for name, why in hashed(folder, manifest, manifest["files"]) if why]
            wrong += [f"{folder / name}: {why}. Again: {rebuild_command(folder)}" for name, why in torn]
            progress.update(round(sizes[folder] / MIB))
    for line in wrong:
        log.error("%s", line)
    for line in besides(store):
        log.info("%s", line)
    if wrong:
        raise UserError(f"{len(wrong)} files of {len(nodes)} nodes are damaged: they are named above.")
    log.info("%d nodes, %.1f GiB, all as published.", len(nodes), total / 2**30)


def besides(store: Store) -> list[str]:
    """What is no published node: harmless, but it takes room or stands for something that a kill left undone."""
    left = gc.left_behind(store)
    told = [f"{p}: left by a kill. The command that began it goes on with it; stage=gc removes it." for p in left]
    for stage in Target:
        for path in sorted((store.root / stage).glob("*")):
            building = store.is_locked(stage, path.name[:12])
            whole = NODE.fullmatch(path.name) and (path / "manifest.json").exists()
            if path not in left and not building and not whole:
                told.append(f"{path}: nothing that this store made.")
    locks = [lock.name.split("-", 1) for lock in (store.root / "cache" / "locks").glob("*-*")]
    idle = [name for name in locks if not store.is_locked(*name)]
    gone = [name for name in idle if not any((store.root / name[0]).glob(f"{name[1]}*"))]
    told += [f"{len(gone)} lock files of nodes that are gone: harmless."] if gone else []
    links = [link for link in (store.root / "latest").glob("*") if not link.exists()]
    again = "leads to a node that is gone; the next command of that stage points it at another."
    return told + [f"{link}: {again}" for link in links]
