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

from stages.cli import compose, json_output
from stages.cli.explain import explain, explained
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Command, Split, SweepMetric, Upstream
from stages.config.errors import UserError, require_known, visible
from stages.config.schema import POLICY_STAGES, Config, Target
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
            if (line := explain(error)) is None:
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
        folder, typed = Path(config.hydra.sweep.dir), list(config.hydra.overrides.task)
        if config.stage in MEASURED_BY[SweepMetric.pass_rate]:
            outputs = [o for o in typed if o.startswith("outputs=")]
            log.info(
                "Compare: %s", provenance.command("compare", [*outputs, f"compare.sweep={folder}"])
            )
        split = (
            [] if any(o.startswith("answer.split=") for o in typed) else ["answer.split=validation"]
        )
        # Evaluations reuse the trained models.
        if (
            is_grid(config)
            and config.stage in POLICY_STAGES
            and not is_untested(config, validation=bool(split))
        ):
            log.info("To evaluate them: %s -m", provenance.command("eval", [*typed, *split]))
        jobs = [
            path.parent
            for path in sorted(folder.rglob(".hydra"))
            if folder / "shared" not in path.parents
        ]
        if failed := [job / ERROR for job in jobs if (job / ERROR).exists()]:
            head = f"error: {len(failed)} of {len(jobs)} jobs failed. The others have finished."
            sys.exit("\n  ".join([head, *(file.read_text(encoding="utf-8") for file in failed)]))


def is_untested(config: DictConfig, validation: bool) -> bool:
    """Return whether the sweep's models cannot be evaluated on the validation split, or else on `answer.split`."""
    plain = config.copy()
    with read_write(plain), open_dict(plain):
        plain.pop("hydra", None)
    cfg: Config = OmegaConf.to_object(plain)  # type: ignore[assignment]
    split = Split.validation if validation else cfg.answer.split
    return bool(
        evaluation_settings.untested_message(replace(cfg, answer=replace(cfg.answer, split=split)))
    )


def is_grid(config: DictConfig) -> bool:
    """Return whether the jobs are known before they start, which those of Optuna are not."""
    return bool(config.hydra.runtime.choices["hydra/sweeper"] == "basic")


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
    common = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    titles = [visible(" ".join(each for each in job if each not in common)) for job in jobs]
    command = provenance.command(config.stage, ["-m", *config.hydra.overrides.task])
    root, name = Path(config.outputs), sweep_name(config.hydra.sweep.dir)
    page = runs.note_sweep(root, name, command, titles, ended)
    if not ended:
        log.info("The jobs: %s", page)


def build_shared(config: DictConfig) -> None:
    """Build the missing nodes that two or more jobs of a grid need, in waves, through the sweep's launcher.

    A job whose configuration cannot work is ignored here: it fails when it runs, and stops no other job.
    Raise UserError if no job has a configuration that can work."""
    loader, jobs = GlobalHydra.instance().config_loader(), jobs_of_grid(config)
    needed, refused = [], list[UserError]()
    for job in jobs:
        try:
            needed.append(nodes_to_build(loader.load_sweep_config(config, job)))
        except UserError as error:
            needed.append({})
            refused.append(error)
    if len(refused) == len(jobs):
        raise refused[0]
    for number, wave in enumerate(plan_waves(needed)):
        builds = [[*jobs[job], f"hydra.sweep.subdir=shared/{number}-{job}"] for job, _ in wave]
        log.info(
            "Building the nodes that several jobs need: %s",
            "; ".join(", ".join(names) for _, names in wave),
        )
        context = HydraContext(loader, Callbacks(config))
        task = partial(build_nodes, [names for _, names in wave])
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        launcher.launch(builds, initial_job_idx=0)


def nodes_to_build(composed: DictConfig) -> dict[str, Node]:
    """Return the nodes that a job will build, by name."""
    with read_write(composed), open_dict(composed):
        overrides = composed.pop("hydra").overrides.task
    cfg, store, nodes = compose.prepare(composed, overrides)
    if composed.stage not in STAGES or cfg.upstream is Upstream.require:
        return {}
    missing_nodes = store.missing(requested_nodes(cfg, nodes))
    return {name: node for name, node in nodes.items() if node in missing_nodes}


def plan_waves(jobs: Jobs) -> list[Wave]:
    """Return the waves of builds for nodes that two or more jobs need, those for most jobs first."""
    users: dict[str, list[int]] = {}
    for job, nodes in enumerate(jobs):
        for fingerprint in {node.fingerprint for node in nodes.values()}:
            users.setdefault(fingerprint, []).append(job)
    groups: dict[tuple[int, ...], list[str]] = {}
    for job, nodes in enumerate(jobs):
        for name, node in nodes.items():
            needing = tuple(users[node.fingerprint])
            if len(needing) > 1 and needing[0] == job:
                groups.setdefault(needing, []).append(name)
    sizes = sorted({len(needing) for needing in groups}, reverse=True)
    return [
        [(needing[0], names) for needing, names in groups.items() if len(needing) == size]
        for size in sizes
    ]


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
    require_known("stage", [config.stage], [*Target, *Command])
    stages, direction = MEASURED_BY[config.sweep_metric], DIRECTIONS[config.sweep_metric]
    if config.stage not in stages:
        measured = f"sweep_metric={config.sweep_metric} is measured by stage={' or '.join(stages)}"
        raise UserError(f"{measured}, not by stage={config.stage}.")
    if config.sweep_metric is SweepMetric.pass_rate and config.answer.split is Split.test:
        way_out = "Add answer.split=validation, and evaluate the best settings on test once"
        raise UserError(f"answer.split=test must not be optimised. {way_out}.")
    if config.sweep_metric is SweepMetric.validation_loss:
        if not config[config.stage].evaluations:
            raise UserError(
                f"stage={config.stage} has no validation loss here. Set {config.stage}.evaluations=4."
            )
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        typed = [override.key_or_group for override in overrides if override.is_sweep_override()]
        swept = [*typed, *map(str, config.hydra.sweeper.params or {})]
        loss_keys = {f"{config.stage}.{key}" for key in OBJECTIVES[config.stage].of_loss}
        if other := [
            key for key in swept if key in loss_keys or not key.startswith(f"{config.stage}.")
        ]:
            changed = (
                f"the definition of the {config.stage} loss"
                if other[0] in loss_keys
                else "its held-out rows"
            )
            way_out = "Use stage=eval answer.split=validation sweep_metric=pass_rate"
            raise UserError(f"{other[0]} changes {changed}, so losses cannot choose it. {way_out}.")
    if str(config.hydra.sweeper.direction).rpartition(".")[2] != direction:
        raise UserError(
            f"sweep_metric={config.sweep_metric} needs hydra.sweeper.direction={direction}."
        )


def sweep_metric(cfg: Config, nodes: dict[str, Node], store: Store) -> float | None:
    """Return the metric for sweepers such as Optuna, the mean over seeds; None if the stage does not measure it."""
    if cfg.stage not in MEASURED_BY[cfg.sweep_metric]:
        return None
    stage = "eval" if cfg.sweep_metric is SweepMetric.pass_rate else str(cfg.stage)
    manifests = [
        store.find(node) for name, node in nodes.items() if name.partition("_seed_")[0] == stage
    ]
    metrics = [manifest["metrics"] for manifest in manifests if manifest]
    if cfg.sweep_metric is SweepMetric.pass_rate:
        return (
            fmean(m["pass_rate"]["policy"] for m in metrics)
            if all(m["pass_rate"] for m in metrics)
            else None
        )
    return (
        fmean(m["eval_loss"] for m in metrics) if all("eval_loss" in m for m in metrics) else None
    )
