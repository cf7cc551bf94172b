"""`stage=doctor`: compare every file of every published node with the digest in its manifest."""

import logging
from dataclasses import dataclass

from stages.commands import gc
from stages.commands.result import Result
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.store.manifest import check_files, manifest_of
from stages.store.sealed_json import NODE, Damaged, rebuild_command
from stages.store.store import Store
from stages.store.workspace import Progress

log = logging.getLogger(__name__)


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
    folders = sorted(store.published_folders())
    problems = list[str]()
    size = 0
    with Progress(len(folders), "doctor", "node") as progress:
        for folder in folders:
            try:
                manifest = manifest_of(folder)
            except Damaged as error:
                problems.append(str(error))
                continue
            for name, why in check_files(folder, manifest, manifest["files"]):
                rebuild = rebuild_command(folder)
                problems.append(f"{folder / name}: {why}. To rebuild it: {rebuild}")
            size += sum(entry["bytes"] for entry in manifest["files"].values())
            progress.update()
    return DoctorResult(len(folders), size, problems, leftover_lines(store))


def leftover_lines(store: Store) -> list[str]:
    """Return a line for each path that is not a published node: it is harmless, but takes room."""
    leftovers = gc.leftover_folders(store)
    way_out = "Run that command again to resume it, or stage=gc to remove this."
    lines = [f"{path}: left by a killed command. {way_out}" for path in leftovers]
    for stage in Target:
        for path in sorted((store.root / stage).glob("*")):
            is_node = NODE.fullmatch(path.name) and (path / "manifest.json").exists()
            is_built = store.is_locked(stage, path.name[:12])
            if not is_node and not is_built and path not in leftovers:
                lines.append(f"{path}: not created by this store.")
    return lines
