"""`stage=doctor`: compare every file of every published node with the digest in its manifest."""

import logging

from stages.commands import gc
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.store.manifest import check_files, manifest_of
from stages.store.sealed_json import NODE, Damaged, rebuild_command
from stages.store.store import Store
from stages.store.workspace import Progress

log = logging.getLogger(__name__)


def run(cfg: Config, store: Store, *_: object) -> None:
    """Log each damaged file with the command that rebuilds it, and files in the store that belong to no node.
    Raise UserError if a file is damaged, or the folder is not a store."""
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
    for line in problems:
        log.error("%s", line)
    for line in leftover_lines(store):
        log.info("%s", line)
    if problems:
        raise UserError(
            f"{len(problems)} files of {len(folders)} nodes are damaged. Rebuild them as shown above."
        )
    log.info("All files of %d nodes (%.1f GiB) are intact.", len(folders), size / 2**30)


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
