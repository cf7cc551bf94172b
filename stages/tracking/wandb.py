"""The tracker `tracker=wandb`: Weights & Biases (https://docs.wandb.ai), with files in `outputs/cache/wandb`.

Without an API key, runs are offline, and W&B does not ask for a key. `stage=sync` uploads them later."""

import logging
import netrc
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from stages.config.blocks.processes import Tracker
from stages.config.errors import UserError
from stages.store.manifest import Manifest
from stages.tracking.tables import Table
from stages.tracking.tracker import Attempt, Run

log = logging.getLogger(__name__)

# Marker files in the folder of a run: W&B has its inputs; W&B did not answer when it ended.
CUT_OFF = "cut.off"


class WandbRun(Run):
    """A run of W&B. Online, its inputs are linked at the start; offline, only its configuration names them."""

    def __init__(self, attempt: Attempt, files: Path, settings: Tracker):
        self.upload = settings.upload
        self.files = files
        use_folder(files)
        import wandb

        run_mode = choose_mode()
        try:
            self.run = start(attempt, files, settings, run_mode)
        except Exception as error:
            # also of a mode or another variable of W&B that it does not know
            log.warning(
                "warning: W&B cannot be reached (%s). stage=sync uploads this run later.", error
            )
            run_mode = "offline"
            self.run = start(attempt, files, settings, run_mode)
        if run_mode == "online":
            artifacts = [entry["artifact"] for entry in attempt.config["inputs"].values()]
            try:
                link_run(wandb.Api(), self.run.path, artifacts)
            except Exception as error:
                log.warning(
                    "warning: W&B did not accept this run's inputs (%s)..",
                    error,
                )
        self.is_online = run_mode == "online"

    def opening(self) -> str:
        if self.is_online:
            return f"W&B has the runs: {self.run.project_url}"
        runs = shlex.quote(str(self.files))
        return f"W&B kept the runs here. To send and see them: wandb sync {runs}/offline-run-*"

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def summarize(self, figures: dict[str, Any]) -> None:
        self.run.log({})  # ends the last step, whose metrics would replace figures of the same name
        self.run.summary.update(figures)

    def show(self, tables: dict[str, Table]) -> None:
        import wandb

        for name, (columns, rows) in tables.items():
            self.run.log({name: wandb.Table(columns=columns, data=rows)})

    def keep(self, folder: Path, manifest: Manifest) -> None:
        aliases = [manifest["fingerprint"], manifest["digest"][:12], "latest"]
        self.run.log_artifact(artifact(folder, manifest, self.upload), aliases=aliases)

    def finish(self, failed: bool) -> None:
        try:
            self.run.finish(exit_code=int(failed))
        except TimeoutError:
            (Path(self.run.dir).parent / CUT_OFF).touch()
            log.warning(
                "warning: W&B does not answer any more. stage=sync uploads the rest of this run."
            )


def start(attempt: Attempt, files: Path, settings: Tracker, mode: str) -> Any:
    import wandb

    return wandb.init(
        id=attempt.id,
        project=attempt.project,
        entity=settings.entity,
        group=settings.group or os.environ.get("WANDB_RUN_GROUP") or attempt.group,
        job_type=attempt.stage,
        name=attempt.name,
        config=attempt.config,
        dir=str(files.parent),
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            init_timeout=30,
            finish_timeout=0 if settings.upload else 60,  # 0: no limit
            finish_timeout_raises=True,
            # No console output, code, arguments or git remote is sent, since they could contain a secret.
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
        ),
    )


def artifact(folder: Path, manifest: Manifest, upload: bool) -> Any:
    """Return a W&B artifact with the files of a node (`upload`), or with references to them."""
    import wandb

    name = f"{manifest['stage']}-{manifest['fingerprint']}"
    key_figures = ("digest", "seed", "device", "wall_seconds", "peak_memory", "metrics", "remote")
    metadata = {key: manifest[key] for key in key_figures if key in manifest}
    logged = wandb.Artifact(name, type=manifest["stage"], metadata=metadata)
    for file, entry in manifest["files"].items():
        path = (folder / file).resolve()
        if upload:
            # without a copy: published files do not change
            logged.add_file(str(path), name=file, policy="immutable")
        else:
            # The store knows the SHA-256 already. W&B would read the file again for its MD5.
            for reference in logged.add_reference(path.as_uri(), name=file, checksum=False):
                reference.digest = entry["sha256"]
    return logged


def use_folder(files: Path) -> None:
    """Set the folder for W&B's files, for its caches and logs too. Raise UserError if a file in it has settings of W&B:
    they may name another server, which would get the key."""
    for folder in (files, files / "wandb", files / ".wandb", files.parent / ".wandb"):
        settings = folder / "settings"
        if os.path.lexists(settings):
            way_out = "Remove it. For a server of your own, set WANDB_BASE_URL"
            raise UserError(f"{settings}: W&B would take settings from this file. {way_out}.")
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str(files))


def choose_mode() -> str:
    """Return the user's WANDB_MODE, which `process.prepare` has stored, else online if there is a key."""
    return os.environ.get("PLUMBLINE_WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Return whether a W&B key is in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def link_run(api: Any, path: str, artifacts: Iterable[str]) -> None:
    """Link a run to the artifacts that it used and that W&B has. `path` is entity/project/id. The public API accepts
    links for a finished run without resuming it."""
    user = api.run(path)
    for name in artifacts:
        place = f"{path.rpartition('/')[0]}/{name}"
        if api.artifact_exists(place):
            user.use_artifact(api.artifact(place))


def run_id(folder: Path) -> str:
    """Return `<stage>-<fingerprint>-<attempt>`, the end of the name of a run's folder."""
    stage_fingerprint_attempt = folder.name.split("-")[-3:]
    return "-".join(stage_fingerprint_attempt)
