"""`stage=sync`: send runs that were tracked offline to W&B by `wandb sync`. If the store has a mirror, first send the nodes
that the mirror lacks.

It can be stopped and repeated at any point: a file in a run's folder marks that it was sent."""

import logging
import subprocess
import sys
from pathlib import Path

from stages.config.errors import UserError
from stages.config.schema import Config
from stages.store.store import Store
from stages.tracking.wandb import CUT_OFF, has_key, run_id, use_folder

log = logging.getLogger(__name__)


def run(cfg: Config, store: Store, *_: object) -> None:
    """Send the unsent runs under `outputs/cache/wandb` to `tracker.project`. Raise UserError without a key or a
    connection; or after all others were sent, if W&B refused some runs."""
    store.share_all()
    runs_folder = (store.root / "cache" / "wandb").resolve()
    if store.mirror and not (has_key() and any(runs_folder.glob("*run-*"))):
        return
    if not has_key():
        raise UserError("stage=sync needs a W&B key. Set WANDB_API_KEY, or run `wandb login`.")
    use_folder(runs_folder)
    import wandb

    try:
        entity = cfg.tracker.entity or wandb.Api().default_entity
    except wandb.errors.Error as error:
        raise UserError(f"stage=sync: W&B cannot be reached ({error}). Try again later.") from error
    unsent = unsent_runs(store, runs_folder)
    if unsent:
        destination = ["--include-online", "--entity", entity, "--project", cfg.tracker.project]
        command = [sys.executable, "-m", "wandb", "sync", *destination, *map(str, unsent)]
        subprocess.run(command, check=False)
    refused = [run_id(run) for run in unsent if not is_sent(run)]
    log.info("%s/%s: %d runs sent.", entity, cfg.tracker.project, len(unsent) - len(refused))
    if refused:
        raise UserError(
            f"stage=sync: W&B refused {len(refused)} runs, {refused[0]} first. Try again."
        )


def unsent_runs(store: Store, runs_folder: Path) -> list[Path]:
    """Return the folders of finished runs that are not sent yet."""
    finished_and_unsent = list[Path]()
    for run in sorted(runs_folder.glob("*run-*")):
        stage, fingerprint, _ = run_id(run).split("-")
        if is_sent(run):
            continue
        if store.is_locked(stage, fingerprint):
            log.info("%s %s is being built. Sync its run later.", stage, fingerprint)
        else:
            finished_and_unsent.append(run)
    return finished_and_unsent


def is_sent(run: Path) -> bool:
    sent_while_it_ran = not run.name.startswith("offline-") and not (run / CUT_OFF).exists()
    return sent_while_it_ran or any(run.glob("*.wandb.synced"))
