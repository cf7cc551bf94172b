"""A sweep (`-m`): what its jobs share is built once and first, a failed job stops no other, the end says what to do.

All of it is one callback of Hydra's, so that every launcher (this process, joblib, submitit, Ray) is served alike and
no sweeper or launcher is replaced. Before the jobs start, the callback builds each node that two or more of them need.
The builds run through the sweep's launcher, since that is where the GPUs are: jobs that waited for one another's locks
would hold GPUs idle. They run in waves. One build makes all nodes that exactly the same jobs need, and a build for
more jobs is in an earlier wave. An input is needed by every job that needs what is made from it, so it is made in the
same build or in an earlier wave: no build waits for another of its wave.

A sweeper that chooses settings as it goes (Optuna) has no list of jobs before it starts. Its jobs share nodes by the
store's locks alone.
"""

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

from stages.cli import compose
from stages.cli.explain import explain, explained
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Command, Split, SweepMetric, Upstream
from stages.config.errors import UserError, one_of, visible
from stages.config.schema import Config, Target
from stages.pipeline import provenance
from stages.pipeline.build import build
from stages.pipeline.graph import VERSIONS, targets
from stages.preflight import constraints
from stages.store.node import Node
from stages.store.sealed_json import note
from stages.store.store import Store

log = logging.getLogger(__name__)

ERROR = "error.txt"  # in the folder of a job
MEASURED_BY = {SweepMetric.pass_rate: (Target.eval, Target.report), SweepMetric.validation_loss: tuple(OBJECTIVES)}
DIRECTIONS = {SweepMetric.pass_rate: "maximize", SweepMetric.validation_loss: "minimize"}

Jobs = list[dict[str, Node]]  # of each job the nodes to build, by name
Wave = list[tuple[int, list[str]]]  # whose configuration, and the names of the nodes to build under it


class Sweep(Callback):
    """`hydra.callbacks.sweep`. Hydra turns an exception of a callback into a warning, but for SystemExit."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with explained():
            if config.hydra.runtime.choices["hydra/sweeper"] == "basic":
                build_shared(config)
            else:
                refuse(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Where the job ran: tell a failure in one line, and return nothing in its place. A sweeper would stop at an
        exception, which may not even survive the way back from another process."""
        if config.hydra.mode is not RunMode.MULTIRUN or job_return.status is not JobStatus.FAILED:
            return
        try:
            _ = job_return.return_value
        except Exception as error:
            line = explain(error)
            if line is None:
                log.exception("A bug, or something that went wrong underneath:")
                line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.error("error: %s", line)
            job = " ".join(config.hydra.overrides.task)
            Path(config.hydra.runtime.output_dir, ERROR).write_text(visible(f"{job}: {line}"), encoding="utf-8")
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        typed = list(config.hydra.overrides.task)
        if any(config.stage in stages for stages in MEASURED_BY.values()):
            theirs = [o for o in typed if o.startswith("outputs=")]
            log.info("Compare: %s", provenance.command("compare", [*theirs, f"compare.sweep={folder}"]))
        split = [] if any(o.startswith("answer.split=") for o in typed) else ["answer.split=validation"]
        # The evaluations reuse what was trained, and say more than held-out pairs.
        if config.stage == Target.dpo and not untested(config, validation=bool(split)):
            log.info("To evaluate them: %s -m", provenance.command("eval", [*typed, *split]))
        if failed := [path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*/{ERROR}"))]:
            jobs = len(list(folder.glob("*/.hydra")))
            sys.exit("\n  ".join([f"error: {len(failed)} of {jobs} jobs failed; the others are done.", *failed]))


def untested(config: DictConfig, validation: bool) -> bool:
    """Return whether no prompt could evaluate the jobs of a sweep, of the split that is typed or of validation."""
    plain = config.copy()
    with read_write(plain), open_dict(plain):
        plain.pop("hydra", None)
    cfg: Config = OmegaConf.to_object(plain)  # type: ignore[assignment]
    split = Split.validation if validation else cfg.answer.split
    return bool(constraints.untested_message(replace(cfg, answer=replace(cfg.answer, split=split))))


def build_shared(config: DictConfig) -> None:
    """Build what two or more jobs of a grid need and the store lacks, wave by wave through the sweep's launcher.

    A job whose configuration cannot work shares nothing: it is told when it runs, and stops no other.

    Raises:
        UserError: where no job's configuration can work.
    """
    loader = GlobalHydra.instance().config_loader()
    arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*arguments, *config.hydra.overrides.task])
    sweeper: Any = get_class(config.hydra.sweeper._target_)
    [jobs] = sweeper.split_arguments(overrides, max_batch_size=None)
    needed, refused = [], list[UserError]()
    for job in jobs:
        try:
            needed.append(missing(loader.load_sweep_config(config, job)))
        except UserError as error:
            needed.append({})
            refused.append(error)
    if len(refused) == len(jobs):
        raise refused[0]
    for number, wave in enumerate(waves(needed)):
        builds = [[*jobs[job], f"hydra.sweep.subdir=shared/{number}-{job}"] for job, _ in wave]
        log.info("Before the jobs, what they share: %s", "; ".join(", ".join(names) for _, names in wave))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(loader, Callbacks(config)),
            task_function=partial(build_nodes, [names for _, names in wave]),
            config=config,
        )
        launcher.launch(builds, initial_job_idx=0)


def missing(composed: DictConfig) -> dict[str, Node]:
    """The nodes that a job will build, by name."""
    with read_write(composed), open_dict(composed):
        overrides = composed.pop("hydra").overrides.task
    cfg, store, nodes = compose.prepare(composed, overrides)
    if cfg.stage not in VERSIONS or cfg.upstream is Upstream.require:
        return {}
    wanted = store.missing(targets(cfg, nodes))
    return {name: node for name, node in nodes.items() if node in wanted}


def waves(jobs: Jobs) -> list[Wave]:
    """The builds of nodes that two or more jobs need: one for all that exactly the same jobs need, those of most jobs
    first."""
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
    return [[(needing[0], names) for needing, names in groups.items() if len(needing) == size] for size in sizes]


def build_nodes(wave: list[list[str]], composed: DictConfig) -> None:
    """The task of a wave's builds. Nodes go by name: the machine of a job may choose another precision."""
    cfg, store, nodes = compose.prepare(composed)
    job = HydraConfig.get()
    build([nodes[name] for name in wave[job.job.num]], store, cfg, list(job.overrides.task))


def remember(nodes: dict[str, Node]) -> None:
    """Write down in the job's folder which nodes it is about: `stage=compare` reads it."""
    file = Path(HydraConfig.get().runtime.output_dir) / provenance.JOB_NODES
    note(file, {name: node.fingerprint for name, node in nodes.items()})


def refuse(config: DictConfig) -> None:
    """What a sweeper that optimises must not do.

    Raises:
        UserError: where it would read test, optimise what the target does not measure, compare losses that do not
            compare, or go the wrong way.
    """
    one_of("stage", [config.stage], [*Target, *Command])
    stages, direction = MEASURED_BY[config.sweep_metric], DIRECTIONS[config.sweep_metric]
    if config.stage not in stages:
        raise UserError(
            f"sweep_metric={config.sweep_metric} is measured by stage={' or '.join(stages)}, "
            f"not by stage={config.stage}."
        )
    if config.sweep_metric is SweepMetric.pass_rate and config.answer.split is Split.test:
        raise UserError(
            "test prompts are no target of optimisation: add answer.split=validation, and read test once, with what "
            "it finds."
        )
    if config.sweep_metric is SweepMetric.validation_loss:
        of_loss = {f"{config.stage}.{key}" for key in OBJECTIVES[config.stage].of_loss}
        if unlike := [key for key in swept(config) if key in of_loss]:
            raise UserError(
                f"{unlike[0]} changes what the loss of {config.stage} is, so sweep_metric=validation_loss cannot "
                "choose it: stage=eval answer.split=validation sweep_metric=pass_rate can."
            )
    if str(config.hydra.sweeper.direction).rpartition(".")[2] != direction:
        raise UserError(f"sweep_metric={config.sweep_metric} wants hydra.sweeper.direction={direction}.")


def swept(config: DictConfig) -> list[str]:
    """Return the keys that a sweeper chooses values of."""
    overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    typed = [override.key_or_group for override in overrides if override.is_sweep_override()]
    return [*typed, *(str(key) for key in config.hydra.sweeper.params or {})]


def metric(cfg: Config, nodes: dict[str, Node], store: Store) -> float | None:
    """What Optuna and its like optimise, averaged over seeds; None where the target does not measure it."""
    if cfg.stage not in MEASURED_BY[cfg.sweep_metric]:
        return None
    measured = "eval" if cfg.sweep_metric is SweepMetric.pass_rate else str(cfg.stage)
    found = [store.find(node) for name, node in nodes.items() if name.partition("_seed_")[0] == measured]
    metrics = [manifest["metrics"] for manifest in found if manifest]
    if cfg.sweep_metric is SweepMetric.pass_rate:
        return fmean(m["pass_rate"]["policy"] for m in metrics) if all(m["pass_rate"] for m in metrics) else None
    return fmean(m["eval_loss"] for m in metrics) if all("eval_loss" in m for m in metrics) else None
