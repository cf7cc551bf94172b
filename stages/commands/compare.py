"""`stage=compare`: what a store or a sweep holds, side by side, in the terminal and in `outputs/compare.html`.

Evaluations are compared by pass rates, trainings that nothing evaluated by their held-out rows. What was measured on
other prompts stands in a table of its own. The best of several is chosen by the prompts that measure it, so its own
rate there is optimistic: read test once, with what is chosen. Nothing is built.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.commands.comparing.groups import Group, grouped
from stages.commands.comparing.measured import Key, rows
from stages.commands.comparing.trained import Trainings, trainings
from stages.commands.node_settings import Nodes, words
from stages.config.errors import UserError, visible
from stages.config.schema import Compare
from stages.pipeline.provenance import JOB_NODES
from stages.store import safe_files
from stages.store.numbers import points
from stages.store.sealed_json import having, load_json
from stages.store.store import Store

log = logging.getLogger(__name__)

PAGE = "compare.html"  # in the store's root; `stage=gc` keeps what it names


def show(store: Store, cfg: Compare) -> None:
    """Say which setting is best, print a table for each set of prompts, and write the page.

    Raises:
        UserError: where there is nothing to compare.
    """
    nodes, wanted = manifests(store), of_sweep(store, cfg.sweep)
    groups, trained = grouped(rows(store, nodes, wanted)), trainings(store, nodes, wanted)
    if not groups and not trained:
        raise UserError("there is no evaluation to compare yet: stage=eval makes one.")
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    for group in groups:
        console.print(visible(group.sentence), table(group), differences(group))
        if group.note:
            log.info("%s", group.note)
    for course in trained:
        console.print(visible(course.sentence), trained_table(course))
    page = store.root / PAGE
    if safe_files.write_if_allowed(page, html(groups, trained)):
        log.info("The page: %s", page)
    else:
        log.info("No page: %s may only be read.", store.root)


def manifests(store: Store) -> Nodes:
    """What the store holds, the oldest first."""
    return {(m["stage"], m["fingerprint"]): (folder, m) for folder, m in store.manifests()}


def of_sweep(store: Store, sweep: str | None) -> Callable[[Key], bool]:
    """Whether a node is one of a sweep's jobs; without a sweep, every node is wanted."""
    if sweep is None:
        return lambda key: True
    jobs = [load_json(path, having()) for path in Path(sweep).glob(f"*/{JOB_NODES}")]
    if not jobs:
        raise UserError(f"compare.sweep={sweep} holds no jobs of a sweep: they lie in {store.root}/multirun/.")
    theirs = {fingerprint for job in jobs for fingerprint in job.values()}
    return lambda key: key[1] in theirs


def table(group: Group) -> Table:
    """What came out, in 80 columns."""
    shown = plain(group.title, "passes, %", "over SFT", "KL", "tokens", "ended", "time")
    for i, (setting, rate, gain) in enumerate(zip(group.settings, group.rates, group.gains, strict=True)):
        over = "" if gain is None else f"{points(gain.mean)} ({gain.bounds()})"
        shown.add_row(
            f"{i + 1}{'*' if group.front[i] else ''}",
            f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
            setting.title if setting.start else over,
            f"{setting.kl:.4f}",
            f"{setting.mean('mean_tokens'):.1f}",
            f"{setting.mean('stop_rate'):.1%}",
            f"{setting.seconds:.0f} s",
        )
    shown.caption, shown.caption_justify = "* no other has a higher rate at no more KL from SFT", "left"
    return shown


def differences(group: Group) -> Table:
    """Where the rows come from, in lines as long as the terminal is wide: any number of settings may differ."""
    shown = Table("", "eval", "settings", box=None, header_style="bold", pad_edge=False)
    for i, setting in enumerate(group.settings):
        told = setting.line or ("" if setting.title == setting.name else "as most")
        title = "" if setting.runs[0].role == "policy" else f"{setting.title} "
        shown.add_row(f"{i + 1}", " ".join(run.fingerprint for run in setting.runs), visible(title + told))
    if group.usual:
        shown.add_row("", "most", visible(words(group.usual)))
    return shown


def trained_table(group: Trainings) -> Table:
    measures = [*(["pairs, %"] if group.by_pairs else []), *(["loss"] if group.by_loss else [])]
    shown = plain(group.title, *measures, "from the first", "time")
    shown.add_column("settings")
    for i, (training, line, gap) in enumerate(zip(group.trainings, group.lines, group.behind, strict=True)):
        figures = [f"{100 * training.accuracy:.1f}"] if group.by_pairs else []
        figures += [f"{training.loss:.4f}"] if group.by_loss else []
        behind = f"{group.shown(gap.mean)} ({group.shown(gap.low)} to {group.shown(gap.high)})" if gap else ""
        shown.add_row(f"{i + 1}", *figures, behind, f"{training.seconds:.0f} s", visible(line or "as most"))
    return shown


def plain(title: str, *columns: str) -> Table:
    shown = Table("", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def html(groups: list[Group], trained: list[Trainings]) -> str:
    """The page: what follows from each set of prompts, and its tables."""
    from stages.pages import scatter
    from stages.pages.environment import environment

    def plot(group: Group) -> scatter.Scatter:
        both = zip(group.settings, group.rates, strict=True)
        points = [scatter.Point(s.kl, rate.mean, rate.low, rate.high, s.start) for s, rate in both]
        return scatter.scatter(points, group.front)

    page = environment().get_template("compare.html.jinja")
    return page.render(words=words, groups=[(group, plot(group)) for group in groups], trained=trained)
