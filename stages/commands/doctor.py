"""`stage=doctor`: compare every file of every published node with the digest in its manifest."""

import logging
from dataclasses import dataclass
from pathlib import Path

from stages.commands import gc
from stages.commands.result import Result
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.store.manifest import Manifest, check_files, manifest_of
from stages.store.sealed_json import NODE, Damaged, rebuild_command
from stages.store.store import Store
from stages.store.workspace import Progress

log = logging.getLogger(__name__)

MIB = 2**20


@dataclass
class DoctorResult(Result):
    """`damaged`: a line for each damaged file, with the command that rebuilds it. `leftovers`: a line for each path that
    belongs to no node."""

    nodes: int
    bytes: int
    damaged: list[str]
    leftovers: list[str]

    def show(self) -> None:
        for line in self.damaged:
            log.error("%s", line)
        for line in self.leftovers:
            log.info("%s", line)
        if not self.damaged:
            size = self.bytes / 2**30
            log.info("All files of %d nodes (%.1f GiB) are intact.", self.nodes, size)

    def end(self) -> None:
        """Raise UserError if a file is damaged."""
        if self.damaged:
            count = f"{len(self.damaged)} files of {self.nodes} nodes are damaged"
            raise UserError(f"{count}. Rebuild them as shown above.")


def run(cfg: Config, store: Store, *_: object) -> DoctorResult:
    """Check every file. Raise UserError if the folder is not a store."""
    gc.require_store(store)
    nodes, problems = dict[Path, Manifest](), list[str]()
    for folder in sorted(store.published_folders()):
        try:
            nodes[folder] = manifest_of(folder)
        except Damaged as error:
            problems.append(str(error))
    sizes = {
        folder: sum(entry["bytes"] for entry in m["files"].values()) for folder, m in nodes.items()
    }
    total = sum(sizes.values())
    with Progress(round(total / MIB), "doctor", "MiB") as progress:
        for folder, manifest in nodes.items():
            damaged = check_files(folder, manifest, manifest["files"])
            problems += [
                f"{folder / name}: {why}. To rebuild it: {rebuild_command(folder)}"
                for name, why in damaged
            ]
            progress.update(round(sizes[folder] / MIB))
    return DoctorResult(len(nodes), total, problems, leftover_lines(store))


def leftover_lines(store: Store) -> list[str]:
    """Return a line for each path that is not a published node: it is harmless, but takes room."""
    leftovers = gc.leftover_folders(store)
    way_out = "Run that command again to resume it, or stage=gc to remove this."
    lines = [f"{path}: left by a killed command. {way_out}" for path in leftovers]
    for stage in Target:
        for path in sorted((store.root / stage).glob("*")):
            whole = NODE.fullmatch(path.name) and (path / "manifest.json").exists()
            if path not in leftovers and not whole and not store.is_locked(stage, path.name[:12]):
                lines.append(f"{path}: not created by this store.")
    locks = [lock.name.split("-", 1) for lock in (store.root / "cache" / "locks").glob("*-*")]
    idle = [name for name in locks if not store.is_locked(*name)]
    gone = [name for name in idle if not any((store.root / name[0]).glob(f"{name[1]}*"))]
    lines += [f"{len(gone)} lock files belong to deleted nodes. They are harmless."] if gone else []
    links = [link for link in (store.root / "latest").glob("*") if not link.exists()]
    consequence = "links to a deleted node. The next command of that stage updates the link."
    return lines + [f"{link}: {consequence}" for link in links]
