"""`stage=sync`: runs that were tracked offline go to W&B, and what each run used is told there.

It may be stopped at any point and run again: in a run's folder W&B marks that it was sent, we that inputs were told.
"""

import logging
import subprocess
import sys
from pathlib import Path

from stages.config.errors import UserError
from stages.config.schema import Tracker
from stages.store.manifest import read_manifest
from stages.store.store import Store
from stages.store.workspace import Progress
from stages.tracking.tracker import version
from stages.tracking.wandb import CUT_OFF, LINKED, has_key, home, link

log = logging.getLogger(__name__)


def push(store: Store, settings: Tracker) -> None:
    """Send the offline runs under `outputs/cache/wandb` to `tracker.project`, then link every run with its inputs.

    Raises:
        UserError: without a key or a connection; where runs were not taken, after all others were.
    """
    if not has_key():
        raise UserError("stage=sync sends runs to W&B and needs a key: set WANDB_API_KEY, or run `wandb login`.")
    files = home(store.root)
    import wandb

    try:
        project = f"{settings.entity or wandb.Api().default_entity}/{settings.project}"
    except wandb.errors.Error as error:
        raise UserError(f"W&B cannot be reached, nothing was sent. Try again later. It said: {error}") from error
    runs = unsent(store, files)
    refused = send(runs, project)
    log.info("%s: %d runs sent.", project, len(runs) - len(refused))
    refused += build_lineage(store, files, project)
    if refused:
        raise UserError(f"W&B did not take {len(refused)} runs, {refused[0]} first. The same command tries again.")


def unsent(store: Store, files: Path) -> list[Path]:
    """The folders of runs that are over and not sent, oldest first."""
    found = list[Path]()
    for run in sorted(run for run in files.glob("*run-*") if not sent(run)):
        stage, fingerprint, _ = run_id(run).split("-")
        if store.is_locked(stage, fingerprint):
            log.info("%s %s is being built: its run is left for the next time.", stage, fingerprint)
        else:
            found.append(run)
    return found


def run_id(run: Path) -> str:
    """`<stage>-<fingerprint>-<attempt>`, with which the names of runs' folders end."""
    return "-".join(run.name.split("-")[-3:])


def sent(run: Path) -> bool:
    online = not run.name.startswith("offline-") and not (run / CUT_OFF).exists()
    return online or any(run.glob("*.wandb.synced"))


def send(runs: list[Path], project: str) -> list[str]:
    """`wandb sync`, which shows its progress and what hinders it; the runs that were not taken."""
    entity, name = project.split("/")
    place = ["--include-online", "--entity", entity, "--project", name]
    if runs:
        subprocess.run([sys.executable, "-m", "wandb", "sync", *place, *map(str, runs)], check=False)
    return [run_id(run) for run in runs if not sent(run)]


def build_lineage(store: Store, files: Path, project: str) -> list[str]:
    """Link the sent runs behind what the store holds with their inputs; the runs for which that failed."""
    import wandb

    told, missing, failed = 0, set[str](), list[str]()
    api = wandb.Api()
    runs = [run for run in sorted(files.glob("*run-*")) if sent(run) and not (run / LINKED).exists()]
    with Progress(len(runs), "lineage", "run") as progress:
        for run in runs:
            stage, fingerprint, _ = run_id(run).split("-")
            manifest = read_manifest(store.root / stage / fingerprint)
            if manifest and run_id(run) in [attempt["wandb_run"] for attempt in manifest["attempts"]]:
                inputs = [version(**given) for given in manifest["inputs"].values()]
                try:
                    absent = link(api, run, f"{project}/{run_id(run)}", inputs)
                except wandb.errors.Error as error:
                    log.warning("warning: %s: %s", run_id(run), error)
                    failed.append(run_id(run))
                else:
                    told += not absent
                    missing.update(absent)
            progress.update()
    log.info("%s: the inputs of %d runs told.", project, told)
    if missing:
        log.info("Not found there, as if built without W&B: %s.", ", ".join(sorted(missing)))
    return failed
