"""A sweep (`-m`): let no failed job stop the others, name the next command, measure what a sweeper optimises.

All of this is one Hydra callback, so it works with every launcher (this process, joblib, submitit, Ray). Jobs share
nodes through the store: the first job that needs a node builds it, under its lock, and the others wait for it."""

import logging
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stages.cli import json_output
from stages.cli.explain import explain, explained
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Split, SweepMetric
from stages.config.commands import COMMANDS
from stages.config.errors import LimitReached, UserError, visible
from stages.config.exit_codes import ExitCode
from stages.config.limits import require_word
from stages.config.schema import Config
from stages.config.stage_table import POLICY_STAGES, STAGES, Target
from stages.pipeline import provenance
from stages.store import safe_files
from stages.store.node import Node
from stages.store.sealed_json import write_note
from stages.store.store import Store

log = logging.getLogger(__name__)

# files in the folder of a job that failed, or that stopped at a limit
ERROR = "error.txt"
STOPPED = "stopped.txt"
# held-out prompts of the others have rewards
WITH_LOSS = tuple(name for name, objective in OBJECTIVES.items() if not objective.draws)
MEASURED_BY = {
    SweepMetric.pass_rate: (Target.eval, Target.report),
    SweepMetric.validation_loss: WITH_LOSS,
}
DIRECTIONS = {SweepMetric.pass_rate: "maximize", SweepMetric.validation_loss: "minimize"}


class Sweep(Callback):
    """The callback `hydra.callbacks.sweep`. It raises SystemExit, as Hydra turns other exceptions into warnings."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        for name in (ERROR, STOPPED):
            for file in Path(config.hydra.sweep.dir).rglob(name):
                file.unlink()  # of an earlier sweep in this folder
        with explained():
            json_output.refuse_json_of_sweep()
            command = COMMANDS.get(config.stage)
            if command and command.exit_code_is_verdict:
                problem = f"stage={config.stage} has one exit code, so it compares one run"
                raise UserError(f"{problem}. Leave out -m.")
            if not is_grid(config):
                validate_optimiser(config)
            write_sweep_page(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Report a job that failed or stopped in one line, in the process that ran it, and return None as its result."""
        if config.hydra.mode is not RunMode.MULTIRUN or job_return.status is not JobStatus.FAILED:
            return
        try:
            _ = job_return.return_value  # raises what the job raised
        except Exception as error:
            line = explain(error)
            if line is None:
                log.exception("An unexpected error, perhaps a bug:")
                line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            word, name = "error", ERROR
            if isinstance(error, LimitReached):
                word, name = "stopped", STOPPED
            log.error("%s: %s", word, line)
            job = " ".join(config.hydra.overrides.task)
            Path(config.hydra.runtime.output_dir, name).write_text(
                visible(f"{job}: {line}"), encoding="utf-8"
            )
        # an exception would stop the sweeper, and cannot always be pickled on its way from another process
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        write_sweep_page(config, ended=True)
        for line in next_commands(config):
            log.info("%s", line)
        report_failed_jobs(Path(config.hydra.sweep.dir))


def next_commands(config: DictConfig) -> list[str]:
    """Return the lines that name the command that compares the jobs, or the one that evaluates their models."""
    typed = typed_overrides(config)
    lines = list[str]()
    if config.stage in MEASURED_BY[SweepMetric.pass_rate]:
        outputs = [override for override in typed if override.startswith("outputs=")]
        for name, command in COMMANDS.items():
            if command.key_of_sweep:
                of_sweep = [*outputs, f"{command.key_of_sweep}={config.hydra.sweep.dir}"]
                lines.append(f"{name.capitalize()}: {provenance.command(name, of_sweep)}")
    if is_grid(config) and config.stage in POLICY_STAGES:
        evaluated = list(typed)
        if not any(override.startswith("answer.split=") for override in typed):
            evaluated.append("answer.split=validation")
        # evaluations reuse the trained models
        lines.append(f"To evaluate them: {provenance.command('eval', evaluated)} -m")
    return lines


def typed_overrides(config: DictConfig) -> list[str]:
    """Return the overrides of a sweep as they are typed, as an interpolation in them may have no value."""
    typed: list[str] = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return typed


def report_failed_jobs(sweep_folder: Path) -> None:
    """End the command with the lines of the jobs of a sweep's folder that failed or stopped at a limit, if any did."""
    jobs = [*sweep_folder.rglob(".hydra")]
    errors = read_lines(sweep_folder, ERROR)
    stops = read_lines(sweep_folder, STOPPED)
    heads = list[str]()
    if errors:
        heads.append(f"error: {len(errors)} of {len(jobs)} jobs failed.")
    if stops:
        heads.append(f"stopped: {len(stops)} of {len(jobs)} jobs reached a limit.")
    if not heads:
        return
    heads.append("The others have finished.")
    message = "\n  ".join([" ".join(heads), *errors, *stops])
    if errors:
        sys.exit(message)
    sys.stderr.write(f"{message}\n")
    sys.exit(ExitCode.stopped)


def read_lines(sweep_folder: Path, name: str) -> list[str]:
    """Return the line of every job of a sweep that has a file of this name."""
    return [file.read_text(encoding="utf-8") for file in sorted(sweep_folder.rglob(name))]


def is_grid(config: DictConfig) -> bool:
    """Return whether the jobs are the grid of Hydra's basic sweeper."""
    return bool(config.hydra.runtime.choices["hydra/sweeper"] == "basic")


def is_job() -> bool:
    """Return whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def sweep_name(folder: str) -> str:
    """Return the name of a sweep, of its date and time."""
    date_and_time = Path(folder).parts[-2:]
    return "-".join(("sweep", *date_and_time))


def names_of_sweep_and_job() -> tuple[str, str]:
    """Return the names of this job's sweep and of the job; two empty texts outside a sweep."""
    if not is_job():
        return "", ""
    hydra = HydraConfig.get()
    return sweep_name(hydra.sweep.dir), f"job {hydra.job.num}"


def write_sweep_page(config: DictConfig, ended: bool = False) -> None:
    """Write the page of a sweep, if its stage builds nodes."""
    if config.stage not in STAGES:  # a command, which builds none
        return
    from stages.pages import runs  # imported here, as a refusal needs no page

    command = provenance.command(config.stage, ["-m", *typed_overrides(config)])
    name = sweep_name(config.hydra.sweep.dir)
    root = Path(config.outputs)
    with safe_files.without_page(root):
        page = runs.note_sweep(root, name, command, ended)
        if not ended:
            log.info("The jobs: %s", page)


def record_fingerprints(nodes: dict[str, Node]) -> None:
    """Write the fingerprints of a job's nodes to its folder, where `stage=compare` reads them."""
    # `stage=compare` reads this file
    file = Path(HydraConfig.get().runtime.output_dir) / provenance.JOB_NODES
    write_note(file, {name: node.fingerprint for name, node in nodes.items()})


def validate_optimiser(config: DictConfig) -> None:
    """Raise UserError for an optimising sweeper that would read the test split, optimise a metric that the stage does
    not measure, or optimise in the wrong direction."""
    metric = config.sweep_metric
    stage = config.stage
    require_word("stage", stage, [*Target, *COMMANDS])
    if stage not in MEASURED_BY[metric]:
        stages = " or ".join(MEASURED_BY[metric])
        raise UserError(
            f"sweep_metric={metric} is measured by stage={stages}, not by stage={stage}."
        )
    if metric is SweepMetric.validation_loss and not config[stage].evaluations:
        raise UserError(f"stage={stage} has no validation loss here. Set {stage}.evaluations=4.")
    if metric is SweepMetric.pass_rate and config.answer.split is Split.test:
        way_out = "Add answer.split=validation, and evaluate the best settings on test once"
        raise UserError(f"answer.split=test must not be optimised. {way_out}.")
    direction = DIRECTIONS[metric]
    if str(config.hydra.sweeper.direction).rpartition(".")[2] != direction:
        raise UserError(f"sweep_metric={metric} needs hydra.sweeper.direction={direction}.")


def sweep_metric(cfg: Config, nodes: dict[str, Node], store: Store) -> float | None:
    """Return the metric for sweepers such as Optuna, the mean over seeds; None if the stage does not measure it, or a
    node that does was deleted."""
    if cfg.stage not in MEASURED_BY[cfg.sweep_metric]:
        return None
    stage = cfg.stage
    key = "eval_loss"
    by_pass_rate = cfg.sweep_metric is SweepMetric.pass_rate
    if by_pass_rate:
        stage = Target.eval
        key = "policy"
    by_seed = list[float]()
    for name, node in nodes.items():
        if name.partition("_seed_")[0] != stage:
            continue
        manifest = store.fetch(node)  # a report from the mirror comes without its evaluation
        metrics = manifest["metrics"] if manifest else {}
        if by_pass_rate:
            metrics = metrics.get("pass_rate") or {}
        value = metrics.get(key)
        if value is None:
            return None
        by_seed.append(value)
    return fmean(by_seed)
