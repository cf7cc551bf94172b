"""A sweep (`-m`): build shared nodes before the jobs, let no failed job stop the others, name the next command.

All of this is one Hydra callback, so it works with every launcher (this process, joblib, submitit, Ray). Before the
jobs start, the callback builds each node that two or more of them need. The builds run through the sweep's launcher,
since the GPUs are there, and jobs that wait for each other's locks would keep GPUs idle. The builds run in waves: one
build makes all nodes that the same set of jobs needs, and builds for more jobs are in earlier waves. Every job that
needs a node also needs its inputs, so these are in the same build or an earlier wave: none waits within its wave.

A sweeper that chooses step by step (Optuna) has no list of jobs at the start: these share nodes by locks."""

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from stages.cli import compose, json_output, unread
from stages.cli.explain import explain, explained
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Command, Split, SweepMetric, Upstream
from stages.config.errors import UserError, require_known, visible
from stages.config.schema import POLICY_STAGES, Config, Target
from stages.hardware import process
from stages.pipeline import provenance
from stages.pipeline.build import build
from stages.pipeline.graph import requested_nodes
from stages.pipeline.stage_table import STAGES
from stages.preflight import building, evaluation_settings
from stages.store.node import Node
from stages.store.sealed_json import write_note
from stages.store.store import Store

log = logging.getLogger(__name__)

ERROR = "error.txt"  # in the folder of a failed job
SHARED = "shared"  # the folder of builds before the jobs
# GRPO's held-out prompts have rewards
WITH_LOSS = tuple(name for name in OBJECTIVES if name != Target.grpo)
MEASURED_BY = {
    SweepMetric.pass_rate: (Target.eval, Target.report),
    SweepMetric.validation_loss: WITH_LOSS,
}
DIRECTIONS = {SweepMetric.pass_rate: "maximize", SweepMetric.validation_loss: "minimize"}

Jobs = list[dict[str, Node]]  # for each job, the nodes to build by name
# for each build, the job whose configuration is used, and the names of the nodes
Wave = list[tuple[int, list[str]]]


class Sweep(Callback):
    """The callback `hydra.callbacks.sweep`. It raises SystemExit, as Hydra turns other exceptions into warnings."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        # of an earlier sweep's jobs in this folder
        for settings in Path(config.hydra.sweep.dir).rglob(".hydra"):
            (settings.parent / ERROR).unlink(missing_ok=True)
        with explained():
            json_output.refuse_sweep()
            if config.stage == Command.gate:
                raise UserError(
                    "stage=gate has one exit code, so it compares one run. Leave out -m."
                )
            if not is_grid(config):
                validate_sweep(config)
            note_sweep(config)
            if is_grid(config):
                build_shared(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Report a failed job in one line, in the process that ran it, and return None as its result. An exception
        would stop the sweeper, and cannot always be pickled on its way from another process."""
        if config.hydra.mode is not RunMode.MULTIRUN or job_return.status is not JobStatus.FAILED:
            return
        try:
            _ = job_return.return_value
        except Exception as error:
            line = explain(error)
            if line is None:
                log.exception("An unexpected error, perhaps a bug:")
                line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.error("error: %s", line)
            job = " ".join(config.hydra.overrides.task)
            Path(config.hydra.runtime.output_dir, ERROR).write_text(
                visible(f"{job}: {line}"), encoding="utf-8"
            )
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        note_sweep(config, ended=True)
        for line in next_commands(config):
            log.info("%s", line)
        report_failed_jobs(Path(config.hydra.sweep.dir))


def next_commands(config: DictConfig) -> list[str]:
    """Return the lines that name the command that compares the jobs, or the one that evaluates their models."""
    typed = list(config.hydra.overrides.task)
    lines = list[str]()
    if config.stage in MEASURED_BY[SweepMetric.pass_rate]:
        outputs = [override for override in typed if override.startswith("outputs=")]
        compared = [*outputs, f"compare.sweep={config.hydra.sweep.dir}"]
        lines.append(f"Compare: {provenance.command('compare', compared)}")
    if is_grid(config) and config.stage in POLICY_STAGES:
        split = list[str]()
        if not any(override.startswith("answer.split=") for override in typed):
            split = ["answer.split=validation"]
        if not is_untested(config, validation=bool(split)):
            # evaluations reuse the trained models
            command = provenance.command("eval", [*typed, *split])
            lines.append(f"To evaluate them: {command} -m")
    return lines


def report_failed_jobs(folder: Path) -> None:
    """End the command with the errors of the jobs of a sweep's folder that failed, if any did."""
    settings = [
        path for path in sorted(folder.rglob(".hydra")) if folder / SHARED not in path.parents
    ]
    errors = [path.parent / ERROR for path in settings if (path.parent / ERROR).exists()]
    if errors:
        head = f"error: {len(errors)} of {len(settings)} jobs failed. The others have finished."
        sys.exit("\n  ".join([head, *(file.read_text(encoding="utf-8") for file in errors)]))


def is_untested(config: DictConfig, validation: bool) -> bool:
    """Return whether the sweep's models cannot be evaluated on the validation split, or else on `answer.split`."""
    plain = config.copy()
    with read_write(plain), open_dict(plain):
        plain.pop("hydra", None)
    cfg: Config = OmegaConf.to_object(plain)  # type: ignore[assignment]
    if validation:
        cfg = replace(cfg, answer=replace(cfg.answer, split=Split.validation))
    return bool(evaluation_settings.untested_message(cfg))


def is_grid(config: DictConfig) -> bool:
    """Return whether the jobs are known before they start, which those of Optuna are not."""
    return bool(config.hydra.runtime.choices["hydra/sweeper"] == "basic")


def is_job_of_grid() -> bool:
    """Return whether this process runs a job of a sweep whose jobs were known before they started."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return False
    return HydraConfig.get().runtime.choices["hydra/sweeper"] == "basic"


def jobs_of_grid(config: DictConfig) -> list[list[str]]:
    """Return the typed settings of each job of a grid."""
    loader = GlobalHydra.instance().config_loader()
    arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides(
        [*arguments, *config.hydra.overrides.task]
    )
    sweeper: Any = get_class(config.hydra.sweeper._target_)
    [jobs] = sweeper.split_arguments(overrides, max_batch_size=None)
    return list(map(list, jobs))


def sweep_name(folder: str) -> str:
    """Return the name of a sweep's page, of its date and time."""
    return "-".join(("sweep", *Path(folder).parts[-2:]))


def name_of_job() -> tuple[str, str]:
    """Return the names of this job's sweep and of the job; two empty texts outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return "", ""
    job = HydraConfig.get()
    return sweep_name(job.sweep.dir), f"job {job.job.num}"


def note_sweep(config: DictConfig, ended: bool = False) -> None:
    """Write the page of a sweep that builds nodes, with the settings by which its jobs differ."""
    if config.stage not in STAGES:
        return
    from stages.pages import runs  # imported here, as a refusal needs no page

    jobs = jobs_of_grid(config) if is_grid(config) else []
    command = provenance.command(config.stage, ["-m", *config.hydra.overrides.task])
    name = sweep_name(config.hydra.sweep.dir)
    page = runs.note_sweep(Path(config.outputs), name, command, job_titles(jobs), ended)
    if not ended:
        log.info("The jobs: %s", page)


def job_titles(jobs: list[list[str]]) -> list[str]:
    """Return the settings of each job that not all jobs have."""
    common = set[str]()
    if len(jobs) > 1:
        common = set(jobs[0]).intersection(*jobs)
    titles = list[str]()
    for job in jobs:
        own = [setting for setting in job if setting not in common]
        titles.append(visible(" ".join(own)))
    return titles


def build_shared(config: DictConfig) -> None:
    """Build the missing nodes that two or more jobs of a grid need, in waves, through the sweep's launcher.
    Raise UserError for keys that no job reads."""
    jobs = jobs_of_grid(config)
    for number, wave in enumerate(plan_waves(nodes_of_jobs(config, jobs))):
        wave_names = [names for _, names in wave]
        builds = [[*jobs[job], f"hydra.sweep.subdir={SHARED}/{number}-{job}"] for job, _ in wave]
        log.info(
            "Building the nodes that several jobs need: %s", "; ".join(map(", ".join, wave_names))
        )
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=partial(build_nodes, wave_names), config=config
        )
        launcher.launch(builds, initial_job_idx=0)


def nodes_of_jobs(config: DictConfig, jobs: list[list[str]]) -> Jobs:
    """Return the nodes that each job will build. A job whose configuration cannot work has none: it fails when it runs,
    and stops no other job. Raise UserError if this is so for all, or for keys that no job reads."""
    loader = GlobalHydra.instance().config_loader()
    needed: Jobs = []
    refused = list[UserError]()
    unread_by_job = list[dict[str, str]]()
    for job in jobs:
        try:
            cfg, store, nodes = prepare_job(loader.load_sweep_config(config, job))
            needed.append(nodes_to_build(cfg, store, nodes))
        except UserError as error:
            needed.append({})
            refused.append(error)
            continue
        typed = process.read_typed_arguments()
        unread_by_job.append(unread.unread_keys(cfg, nodes, typed))
    if len(refused) == len(jobs):
        raise refused[0]
    unread.refuse_unread(unread_by_job)
    return needed


def prepare_job(composed: DictConfig) -> tuple[Config, Store, dict[str, Node]]:
    """Return what `compose.prepare` returns for a job that Hydra does not run yet."""
    with read_write(composed), open_dict(composed):
        overrides = composed.pop("hydra").overrides.task
    return compose.prepare(composed, overrides)


def nodes_to_build(cfg: Config, store: Store, nodes: dict[str, Node]) -> dict[str, Node]:
    """Return the nodes that a job will build, by name."""
    if cfg.stage not in STAGES or cfg.upstream is Upstream.require:
        return {}
    missing_nodes = store.missing(requested_nodes(cfg, nodes))
    return {name: node for name, node in nodes.items() if node in missing_nodes}


def plan_waves(jobs: Jobs) -> list[Wave]:
    """Return the waves of builds for nodes that two or more jobs need, those for most jobs first."""
    jobs_by_fingerprint: dict[str, set[int]] = {}
    for job, nodes in enumerate(jobs):
        for node in nodes.values():
            jobs_by_fingerprint.setdefault(node.fingerprint, set()).add(job)
    names_by_jobs: dict[tuple[int, ...], list[str]] = {}
    for job, nodes in enumerate(jobs):
        for name, node in nodes.items():
            needing = tuple(sorted(jobs_by_fingerprint[node.fingerprint]))
            if len(needing) > 1 and needing[0] == job:
                names_by_jobs.setdefault(needing, []).append(name)
    waves: dict[int, Wave] = {}
    for needing, names in names_by_jobs.items():
        waves.setdefault(len(needing), []).append((needing[0], names))
    return [waves[size] for size in sorted(waves, reverse=True)]


def build_nodes(wave: list[list[str]], composed: DictConfig) -> None:
    """Build the nodes of one job of a wave, by name, as the job's machine may choose another precision."""
    cfg, store, nodes = compose.prepare(composed)
    job = HydraConfig.get()
    shared = {name: nodes[name] for name in wave[job.job.num]}
    missing = sorted(store.missing(requested_nodes(cfg, nodes)), key=str)
    building.try_own_labelers(cfg, missing, store)
    # the sweep may be killed, or wait for a cluster, before its jobs record them
    record_nodes(shared)
    build([*shared.values()], store, cfg, list(job.overrides.task))


def record_nodes(nodes: dict[str, Node]) -> None:
    """Write the fingerprints of a job's nodes to its folder, where `stage=compare` reads them."""
    file = Path(HydraConfig.get().runtime.output_dir) / provenance.JOB_NODES
    write_note(file, {name: node.fingerprint for name, node in nodes.items()})


def validate_sweep(config: DictConfig) -> None:
    """Raise UserError for an optimising sweeper that would read the test split, optimise a metric that the stage does
    not measure, compare losses with different definitions, or optimise in the wrong direction."""
    metric = config.sweep_metric
    require_known("stage", [config.stage], [*Target, *Command])
    stages = MEASURED_BY[metric]
    if config.stage not in stages:
        measured = f"sweep_metric={metric} is measured by stage={' or '.join(stages)}"
        raise UserError(f"{measured}, not by stage={config.stage}.")
    if metric is SweepMetric.validation_loss:
        validate_losses(config)
    elif config.answer.split is Split.test:
        way_out = "Add answer.split=validation, and evaluate the best settings on test once"
        raise UserError(f"answer.split=test must not be optimised. {way_out}.")
    direction = DIRECTIONS[metric]
    if str(config.hydra.sweeper.direction).rpartition(".")[2] != direction:
        raise UserError(f"sweep_metric={metric} needs hydra.sweeper.direction={direction}.")


def validate_losses(config: DictConfig) -> None:
    """Raise UserError if a stage has no validation loss, or if a swept key makes two losses incomparable."""
    stage = config.stage
    if not config[stage].evaluations:
        raise UserError(f"stage={stage} has no validation loss here. Set {stage}.evaluations=4.")
    loss_keys = {f"{stage}.{key}" for key in OBJECTIVES[stage].of_loss}
    for key in swept_keys(config):
        changed = ""
        if key in loss_keys:
            changed = f"the definition of the {stage} loss"
        elif not key.startswith(f"{stage}."):
            changed = "its held-out rows"
        if changed:
            way_out = "Use stage=eval answer.split=validation sweep_metric=pass_rate"
            raise UserError(f"{key} changes {changed}, so losses cannot choose it. {way_out}.")


def swept_keys(config: DictConfig) -> list[str]:
    """Return the keys with several values, on the command line and in a recipe."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    typed = [override.key_or_group for override in overrides if override.is_sweep_override()]
    return [*typed, *map(str, config.hydra.sweeper.params or {})]


def sweep_metric(cfg: Config, nodes: dict[str, Node], store: Store) -> float | None:
    """Return the metric for sweepers such as Optuna, the mean over seeds; None if the stage does not measure it."""
    if cfg.stage not in MEASURED_BY[cfg.sweep_metric]:
        return None
    by_pass_rate = cfg.sweep_metric is SweepMetric.pass_rate
    stage = Target.eval if by_pass_rate else cfg.stage
    values = list[float]()
    for name, node in nodes.items():
        manifest = store.find(node) if name.partition("_seed_")[0] == stage else None
        if manifest is None:
            continue
        metrics = manifest["metrics"]
        value = metrics.get("eval_loss")
        if by_pass_rate:
            value = (metrics["pass_rate"] or {}).get("policy")
        if value is None:
            return None
        values.append(value)
    return fmean(values)
