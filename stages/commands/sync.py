"""`stage=sync`: send runs that were tracked offline to W&B, and link each run with its inputs there. With
`store.remote`, first send the nodes that the remote lacks.

It can be stopped and repeated at any point: files in a run's folder mark that it was sent and linked."""

import logging
import subprocess
import sys
from pathlib import Path

from stages.config.errors import UserError
from stages.config.schema import Config
from stages.store.manifest import read_manifest
from stages.store.store import Store
from stages.store.workspace import Progress
from stages.tracking.tracker import artifact_name
from stages.tracking.wandb import CUT_OFF, LINKED, has_key, link_run, use_folder

log = logging.getLogger(__name__)


def run(cfg: Config, store: Store, *_: object) -> None:
    """Send the offline runs under `outputs/cache/wandb` to `tracker.project`, then link every run with its inputs.
    Raise UserError without a key or a connection; or after all others were sent, if W&B refused some runs."""
    store.share_all()
    if store.mirror and not has_key():
        return
    if not has_key():
        raise UserError("stage=sync needs a W&B key. Set WANDB_API_KEY, or run `wandb login`.")
    files = (store.root / "cache" / "wandb").resolve()
    use_folder(files)
    if store.mirror and not any(files.glob("*run-*")):
        return
    import wandb

    try:
        project = f"{cfg.tracker.entity or wandb.Api().default_entity}/{cfg.tracker.project}"
    except wandb.errors.Error as error:
        raise UserError(f"stage=sync: W&B cannot be reached ({error}). Try again later.") from error
    runs = unsent_runs(store, files)
    refused = send_runs(runs, project)
    log.info("%s: %d runs sent.", project, len(runs) - len(refused))
    refused += link_inputs(store, files, project)
    if refused:
        raise UserError(
            f"stage=sync: W&B refused {len(refused)} runs, {refused[0]} first. Try again."
        )


def unsent_runs(store: Store, files: Path) -> list[Path]:
    """Return the folders of finished runs that are not sent yet, the oldest first."""
    runs = list[Path]()
    for run in sorted(run for run in files.glob("*run-*") if not is_sent(run)):
        stage, fingerprint, _ = run_id(run).split("-")
        if store.is_locked(stage, fingerprint):
            log.info("%s %s is being built. Sync its run later.", stage, fingerprint)
        else:
            runs.append(run)
    return runs


def run_id(run: Path) -> str:
    """Return `<stage>-<fingerprint>-<attempt>`, the end of a run folder's name."""
    return "-".join(run.name.split("-")[-3:])


def is_sent(run: Path) -> bool:
    online = not run.name.startswith("offline-") and not (run / CUT_OFF).exists()
    return online or any(run.glob("*.wandb.synced"))


def send_runs(runs: list[Path], project: str) -> list[str]:
    """Run `wandb sync`, which prints progress and errors, and return the ids of runs that it did not send."""
    entity, name = project.split("/")
    place = ["--include-online", "--entity", entity, "--project", name]
    if runs:
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *place, *map(str, runs)], check=False
        )
    return [run_id(run) for run in runs if not is_sent(run)]


def link_inputs(store: Store, files: Path, project: str) -> list[str]:
    """Link the sent runs of published nodes with their inputs, and return the ids of runs for which that failed."""
    import wandb

    linked, missing, failed = 0, set[str](), list[str]()
    api = wandb.Api()
    runs = [
        run for run in sorted(files.glob("*run-*")) if is_sent(run) and not (run / LINKED).exists()
    ]
    with Progress(len(runs), "lineage", "run") as progress:
        for run in runs:
            stage, fingerprint, _ = run_id(run).split("-")
            manifest = read_manifest(store.root / stage / fingerprint)
            if manifest and run_id(run) in [
                attempt["wandb_run"] for attempt in manifest["attempts"]
            ]:
                inputs = [artifact_name(**entry) for entry in manifest["inputs"].values()]
                try:
                    absent = link_run(api, run, f"{project}/{run_id(run)}", inputs)
                except wandb.errors.Error as error:
                    log.warning("warning: %s: %s", run_id(run), error)
                    failed.append(run_id(run))
                else:
                    linked += not absent
                    missing.update(absent)
            progress.update()
    log.info("%s: %d runs linked with their inputs.", project, linked)
    if missing:
        log.info(
            "These inputs are not there, perhaps built without W&B: %s.", ", ".join(sorted(missing))
        )
    return failed
