"""`stage=doctor`: compare every file of every published node with the digest in its manifest."""

import logging
from dataclasses import dataclass

from stages.commands.result import Result
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.store.manifest import check_files, folder_problem, manifest_of
from stages.store.sealed_json import rebuild_command
from stages.store.store import Store, require_store
from stages.store.workspace import Progress

log = logging.getLogger(__name__)


@dataclass
class DoctorResult(Result):
    """`damaged`: a line for each damaged file, with the command that rebuilds it, and for each folder that is not the
    node of its name."""

    nodes: int
    bytes: int
    damaged: list[str]

    def show(self) -> None:
        for line in self.damaged:
            log.error("%s", line)
        if self.nodes and not self.damaged:
            log.info("All files of %d nodes (%.1f GiB) are intact.", self.nodes, self.bytes / 2**30)

    def end_with_exit_code(self) -> None:
        """Raise UserError if a file is damaged."""
        if self.damaged:
            raise UserError(
                f"{len(self.damaged)} files of {self.nodes} nodes are damaged. Rebuild them as shown above."
            )


def run(cfg: Config, store: Store, *_: object) -> DoctorResult:
    """Check every file of every published node. Raise UserError if the folder is not a store."""
    require_store(store)
    folders = sorted(store.node_folders())
    result = DoctorResult(len(folders), 0, [])
    with Progress(len(folders), "doctor", "node") as progress:
        for folder in folders:
            progress.update()
            problem = folder_problem(folder)
            if problem:
                result.damaged.append(problem)
                continue
            manifest = manifest_of(folder)
            for name, why in check_files(folder, manifest, manifest["files"]):
                line = f"{folder / name}: {why}. To rebuild it: {rebuild_command(folder)}"
                result.damaged.append(line)
            result.bytes += sum(entry["bytes"] for entry in manifest["files"].values())
    return result
