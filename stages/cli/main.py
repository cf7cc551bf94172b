"""The command `plumbline`, or `python run.py` in a checkout: compose, plan, execute, and name the next command."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stages.cli import compose, help, json_output, recipes, sweep, unread
from stages.cli.explain import explained
from stages.cli.interpolations import interpolated_keys
from stages.cli.typed_line import JobLine, line_of_job, read_line
from stages.commands.run_result import (
    RunResult,
    built_nodes,
    page_address,
    results_of_extras,
    step_after_report,
    write_answers_page,
    write_labels_page,
)
from stages.config.choices import Upstream
from stages.config.commands import COMMANDS, import_run
from stages.config.errors import LimitReached, UserError
from stages.config.exit_codes import ExitCode
from stages.config.extras import modules_of_extras
from stages.config.schema import CONF, Config
from stages.config.stage_table import DRAWING, POLICY_STAGES, STAGES, Target
from stages.hardware import process
from stages.pipeline import provenance
from stages.pipeline.build import build, require_inputs
from stages.pipeline.graph import requested_nodes, wire_unpinned
from stages.preflight import building, constraints
from stages.preflight.sources import unasked_files_message
from stages.store.mirror import NotSent
from stages.store.node import Node
from stages.store.store import Store
from stages.tracking.tracker import openings

if TYPE_CHECKING:
    from stages.pages.live import LivePage

log = logging.getLogger(__name__)
# stages in which a model answers the prompts that the policy learns from
ASKING = (Target.sample, *DRAWING)


@dataclass(frozen=True)
class WiredRun:
    """A run whose nodes are known and not built yet. `line`: its command line, whose overrides are those of the commands
    to show; `recipe`: the first line of the run; `interpolated`: the keys that each interpolation reads."""

    cfg: Config
    store: Store
    nodes: dict[str, Node]
    line: JobLine
    recipe: str
    interpolated: dict[str, list[str]]


def main() -> None:
    """Run the command line of this process. If the user interrupts it, say how to resume."""
    line = read_line(tuple(word for word in sys.argv[1:] if word != json_output.FLAG))
    reply = json_output.replying(line) if json_output.FLAG in sys.argv else nullcontext()
    with reply, resumable(), explained():
        process.prepare([*line.arguments])
        implied = compose.implied_values(line)
        for_hydra = compose.arguments_for_hydra(line, implied)
        text = option_text(line.arguments)
        if text is not None:
            sys.stdout.write(f"{text}\n")
            return
        recipes.register(line.values | implied)
        sys.argv[1:] = for_hydra
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run)()


@contextmanager
def resumable() -> Iterator[None]:
    """End the process with the way to resume if the user interrupts the block."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to resume")


def option_text(line: Sequence[str]) -> str | None:
    """Return the text for `--version`, `--help` or `--help=NAME`, or None without these options."""
    if "--version" in line:
        return provenance.describe_installation()
    if "--help" in line or "-h" in line:
        return help.usage()
    for word in line:
        if word.startswith("--help="):
            return help.block_help(word.removeprefix("--help="))
    return None


def run(composed: DictConfig) -> float | None:
    """Run the stage or command in `stage`, and return the metric that a sweep may optimise."""
    # Hydra adds its own line to an exception. For the jobs of a sweep, stages/cli/sweep.py reports errors instead.
    is_single_run = HydraConfig.initialized() and HydraConfig.get().mode is not RunMode.MULTIRUN
    with explained() if is_single_run else nullcontext():
        json_output.require_result(composed.stage)
        line = line_of_job()
        reaches = compose.untyped_reaches(composed, line.values)
        recipe = recipes.describe_recipe(line.values, reaches)
        if reaches:  # before any of them is used
            log.info("%s", recipe)
        cfg, store, nodes = compose.prepare(composed, line.values)
        interpolated = interpolated_keys(composed)
        if cfg.left_out is None:
            refuse_unread(cfg, nodes, line.typed.values, interpolated)
        log_edited_stages(nodes)
        warn_of_unasked_files(cfg, nodes)
        if nodes:
            recipe += recipes.describe_objective(cfg, line.values)
        if nodes and HydraConfig.initialized() and composed.stage in COMMANDS and not reaches:
            log.info("%s", recipe)
        if composed.stage in COMMANDS:
            run_command = import_run(composed.stage)
            result = run_command(cfg, store, nodes, line.overrides)
            if result:
                json_output.deliver(result)
        elif nodes:
            wired = WiredRun(cfg, store, nodes, line, recipe, interpolated)
            with falling_back(wired):
                return build_and_measure(wired)
        else:
            return write_report_again(cfg, store, line)
    return None


def refuse_unread(
    cfg: Config,
    nodes: dict[str, Node],
    typed: Mapping[str, str],
    interpolated: dict[str, list[str]],
) -> None:
    """Raise UserError for typed keys that nothing reads. In a sweep another job may read them: there, warn."""
    messages = unread.unread_messages(cfg, nodes, typed, interpolated)
    if not sweep.is_job() and messages:
        raise UserError(*messages)
    for message in messages:
        log.warning("warning: %s", message)


def warn_of_unasked_files(cfg: Config, nodes: Mapping[str, Node]) -> None:
    """Warn if these nodes ask prompts that the policy learns from, and none is of the user's files."""
    asks = any(node.stage in ASKING for node in nodes.values())
    message = unasked_files_message(cfg) if asks else None
    if message:
        log.warning("warning: %s", message)


def write_report_again(cfg: Config, store: Store, line: JobLine) -> float | None:
    """Write the report of the last run again, and return its metric."""
    from stages.commands import finished_run

    nodes, recorded = finished_run.report_again(cfg, store, line.overrides)
    log_edited_stages({Target.report: nodes[Target.report]})
    # as text: they are part of the command that makes such a report
    line = line.with_overrides(recorded)
    recipe = "recipe: that of the last run"
    return build_and_measure(WiredRun(cfg, store, nodes, line, recipe, interpolated={}))


def log_edited_stages(nodes: dict[str, Node]) -> None:
    """Log the stages of a run whose source is edited, with the files. Stages with the same files have one line."""
    stages_by_files = dict[str, dict[str, None]]()  # a dict, since it has each stage once
    for node in nodes.values():
        if node.edited:
            stages_by_files.setdefault(str(node.edited), {})[node.stage] = None
    for files, stages in stages_by_files.items():
        log.info("%s: edited (%s)", ", ".join(stages), files)


def live_page(wired: WiredRun, targets: list[Node]) -> "LivePage":
    """Return the live page of a run."""
    # imported here, as a refusal needs no page
    from stages.commands.expected_costs import find_forecast
    from stages.pages.live import LivePage

    return LivePage(
        wired.store,
        wired.nodes,
        targets,
        provenance.command(wired.cfg.stage, wired.line.overrides),
        wired.recipe,
        find_forecast(wired.nodes, wired.store).seconds_left,
        *sweep.names_of_sweep_and_job(),
    )


def build_and_measure(wired: WiredRun) -> float | None:
    """Build the nodes of the stage, then deliver what they made, their pages and the next command. Return the metric
    that a sweep may optimise."""
    cfg, store, nodes, overrides = wired.cfg, wired.store, wired.nodes, wired.line.overrides
    target_nodes = requested_nodes(cfg, nodes)
    missing = sorted(store.missing(target_nodes), key=str)
    building.try_user_code(cfg, missing, store)
    building.require_rows_within_length(cfg, missing, nodes, store)
    page = live_page(wired, target_nodes)
    if HydraConfig.initialized():
        log.info("%s; page: %s", page.recipe, page.address)
    process.warn_of_versions()
    if cfg.upstream is Upstream.require:
        require_inputs(target_nodes, store, overrides)
    if HydraConfig.initialized() and store.is_writable:
        sweep.record_fingerprints(nodes)
    not_sent = None
    with page if cfg.launch.node_rank == 0 else nullcontext():
        try:
            build(target_nodes, store, cfg, overrides, page.tell)
        except NotSent as error:
            not_sent = error  # the results are complete here
    pages = (
        page_address(page),
        write_answers_page(store, target_nodes),
        write_labels_page(store, nodes, target_nodes),
    )
    built = built_nodes(page)
    next_line = next_command(cfg, wired.line, wired.interpolated)
    result = RunResult(
        built,
        *pages,
        next_command=next_line or step_after_report(built),
        trackers=[line for line in openings.values() if line],
        further=results_of_extras(built),
    )
    json_output.deliver(result)
    if not_sent and not sweep.is_job():
        raise not_sent
    if not_sent:  # the job has a metric
        log.warning("warning: %s", not_sent)
    if any(module.is_failure(cfg, built) for module in modules_of_extras("run_result")):
        sys.exit(ExitCode.failed)
    return sweep.sweep_metric(cfg, nodes, store)


@contextmanager
def falling_back(wired: WiredRun) -> Iterator[None]:
    """Build nodes of an extra that stand alone, if it has any, before an error of the models' nodes ends the command."""
    cfg = wired.cfg
    try:
        yield
    except (LimitReached, NotSent):
        raise
    except Exception as error:
        alone = cfg.alone_after(error)
        if alone is None:
            raise
        nodes = compose.checked_graph(alone, wired.store)
        build_and_measure(replace(wired, cfg=alone, nodes=nodes))
        raise
    if cfg.left_out is not None:
        raise UserError(cfg.left_out)


def next_command(cfg: Config, line: JobLine, interpolated: dict[str, list[str]]) -> str | None:
    """Return the command for the next stage, or None if these settings allow no stage after `cfg.stage`."""
    stage = STAGES[cfg.stage].next
    while stage and not is_allowed(replace(cfg, stage=stage), line.settled, interpolated):
        stage = STAGES[stage].instead or STAGES[stage].next
    if stage is None and cfg.stage in POLICY_STAGES and "chat" in COMMANDS:
        stage = "chat"  # no prompt evaluates this policy
    return provenance.command(stage, line.overrides) if stage else None


def is_allowed(cfg: Config, settled: Mapping[str, str], interpolated: dict[str, list[str]]) -> bool:
    try:
        constraints.validate_config(cfg)
        nodes = wire_unpinned(cfg)
        requested_nodes(cfg, nodes)
    except UserError:
        return False
    return not unread.unread_messages(cfg, nodes, settled, interpolated)
