"""`tracker=wandb`: Weights & Biases (https://docs.wandb.ai), its files under `outputs/cache/wandb`.

Without a key its runs are offline, and it never asks for one; `stage=sync` pushes them later.
"""

import logging
import netrc
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from stages.config import Tracker
from stages.node import Node
from stages.store import Manifest
from stages.tracking import Run, description, inputs, tables

log = logging.getLogger(__name__)

LINKED = "inputs.told"  # marks the folder of a run whose inputs W&B knows


class WandbRun(Run):
    """A run of W&B's. Online, its inputs are told at its start; offline, its configuration names them."""

    def __init__(self, settings: Tracker, node: Node, root: Path):
        self.upload = settings.upload
        files, given = folder(root), inputs(node, root)
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        try:
            self.run = start(settings, node, files, given, mode)
        except wandb.errors.Error as error:
            log.warning("warning: W&B cannot be reached (%s): this run is logged offline.", error)
            mode = "offline"
            self.run = start(settings, node, files, given, mode)
        self.id = self.run.id
        if mode == "online":
            try:
                artifacts = [its["artifact"] for its in given.values()]
                link(wandb.Api(), Path(self.run.dir).parent, self.run.path, artifacts)
            except wandb.errors.Error as error:
                log.warning("warning: W&B did not take this run's inputs (%s): stage=sync tries again.", error)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics, step=step)

    def published(self, folder: Path, manifest: Manifest) -> None:
        """Log figures, tables and the artifact: references to the files, or with `tracker.upload` the files."""
        import wandb

        self.run.summary.update({**manifest["metrics"], "wall_seconds": manifest["wall_seconds"]})
        for name, (columns, rows) in tables.of(manifest["stage"], folder).items():
            self.run.log({name: wandb.Table(columns=columns, data=rows)})
        name = f"{manifest['stage']}-{manifest['fingerprint']}"
        artifact = wandb.Artifact(name, type=manifest["stage"], metadata=description(manifest))
        for file, entry in manifest["files"].items():
            path = (folder / file).resolve()
            if self.upload:
                artifact.add_file(str(path), name=file, policy="immutable")  # no copy: published files do not change
                continue
            # The store has read the file for its SHA-256 already; W&B would read it again for its MD5.
            for reference in artifact.add_reference(path.as_uri(), name=file, checksum=False):
                reference.digest = entry["sha256"]
        self.run.log_artifact(artifact, aliases=[manifest["fingerprint"], manifest["digest"][:12], "latest"])

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def start(settings: Tracker, node: Node, files: Path, given: dict[str, dict[str, str]], mode: str) -> Any:
    import wandb

    return wandb.init(
        id=f"{node.stage}-{node.fingerprint}-{secrets.token_hex(4)}",  # one per attempt
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        job_type=node.stage,
        name=str(node),
        config={**asdict(node.config), "fingerprint": node.fingerprint, "inputs": given},
        dir=str(files.parent),
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            init_timeout=30,
            # No console, code, arguments or git remote is sent: none can leak a secret then.
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
        ),
    )


def folder(root: Path) -> Path:
    """Where W&B's files go, its caches and logs too."""
    files = (root / "cache" / "wandb").resolve()
    files.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str(files))
    os.environ.setdefault("WANDB_DIR", str(files.parent))
    return files


def has_key() -> bool:
    """Whether a W&B key is in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def link(api: Any, run: Path, path: str, artifacts: Iterable[str]) -> list[str]:
    """Tell W&B what artifacts a run used, and note it in the run's folder. Those that are not there are returned.

    `path` is entity/project/id. The public API takes it for a run that is over, without resuming it.
    """
    user = api.run(path)
    missing = list[str]()
    for artifact in artifacts:
        name = f"{path.rpartition('/')[0]}/{artifact}"
        if api.artifact_exists(name):
            user.use_artifact(api.artifact(name))
        else:
            missing.append(artifact)
    if not missing:
        (run / LINKED).touch()
    return missing
