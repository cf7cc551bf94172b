"""`stage=compare`: compare the runs of a store or a sweep in the terminal and in `outputs/compare.html`.

Evaluations are compared by pass rates. Each set of prompts has a separate table. The best setting's rate is optimistic, as the same prompts chose it: evaluate it once on test."""

import logging
import os
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from stages.commands.comparing.groups import Group, group_by_prompts
from stages.commands.comparing.measured import measured_rows
from stages.commands.node_settings import Nodes, settings_text
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.pipeline.provenance import JOB_NODES
from stages.store import safe_files
from stages.store.numbers import points
from stages.store.sealed_json import load_json, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

PAGE = "compare.html"  # in the store's root; `stage=gc` keeps the nodes that it shows


def run(cfg: Config, store: Store, *_: object) -> None:
    """Print the best setting and a table per set of prompts; write the page. Raise UserError without anything."""
    chosen = nodes_of_sweep(store, cfg.compare.sweep)
    groups = group_by_prompts(measured_rows(store, published_nodes(store), chosen))
    if not groups:
        raise UserError("stage=compare: there is no evaluation yet. Make one with stage=eval.")
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    for group in groups:
        caveat = f" {group.caveat.capitalize()}." if group.caveat else ""
        console.print(visible(group.sentence) + caveat, group_table(group))
        if group.benchmarks:
            console.print(benchmarks_table(group))
        console.print(settings_table(group))
        if group.note:
            log.info("%s", group.note)
    page = store.root / PAGE
    if safe_files.write_if_allowed(page, render_page(groups)):
        log.info("Page: %s", page)
    else:
        log.info("The page is not written, as %s is read-only.", store.root)


def published_nodes(store: Store) -> Nodes:
    """Return the folders and manifests of all published nodes, the oldest first."""
    return {(m["stage"], m["fingerprint"]): (folder, m) for folder, m in store.manifests()}


def nodes_of_sweep(store: Store, sweep: str | None) -> set[str] | None:
    """Return the fingerprints of a sweep's nodes; None without a sweep."""
    if sweep is None:
        return None
    fingerprints = set[str]()
    for path in Path(sweep).glob(f"*/{JOB_NODES}"):
        fingerprints |= {*load_json(path, require_keys()).values()}
    if not fingerprints:
        raise UserError(
            f"compare.sweep={sweep} is not the folder of a sweep. Sweeps are in {store.root}/multirun/."
        )
    return fingerprints


def group_table(group: Group) -> Table:
    """Return the table of results, 80 columns wide."""
    sft_models = [setting for setting in group.settings if setting.is_sft]
    over = "over best SFT" if len(sft_models) > 1 else "over SFT"
    table = empty_table(group.title, "passes, %", over, "KL", "tokens", "ended")
    for number, setting in enumerate(group.settings, 1):
        rate = setting.interval
        gain = setting.gain
        table.add_row(
            f"{number}{'*' if setting.is_front else ''}",
            f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
            f"{points(gain.mean)} ({gain.bounds()})" if gain else setting.title,
            f"{setting.kl:.4f}",
            f"{setting.mean('tokens'):.1f}",
            f"{setting.mean('stop_rate'):.1%}",
        )
    table.caption = "* no other setting has a higher rate at the same KL or less"
    table.caption_justify = "left"
    return table


def benchmarks_table(group: Group) -> Table:
    """Return the table of benchmark rates in percent. A report has their intervals and paired differences."""
    table = empty_table("benchmarks, %", *group.benchmarks)
    for number, setting in enumerate(group.settings, 1):
        rates = setting.benchmarks
        cells = [f"{100 * rates[name]:.1f}" if name in rates else "–" for name in group.benchmarks]
        table.add_row(f"{number}", *cells)
    return table


def settings_table(group: Group) -> Table:
    """Return the table of cost and of the settings that differ, as wide as the terminal."""
    cost = [Column(name, justify="right") for name in ("time", "FLOPs")]
    table = Table("", "eval", *cost, "settings", box=None, header_style="bold", pad_edge=False)
    for number, setting in enumerate(group.settings, 1):
        table.add_row(
            f"{number}",
            " ".join(run.fingerprint for run in setting.runs),
            f"{setting.mean('seconds'):.0f} s",
            f"{setting.mean('flops'):.1e}",
            visible(setting.name),
        )
    if group.common_settings:
        table.add_row("", "most policies", "", "", visible(settings_text(group.common_settings)))
    return table


def empty_table(title: str, *columns: str) -> Table:
    figures = (Column(name, justify="right", no_wrap=True) for name in columns)
    return Table(
        "",
        *figures,
        title=title,
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )


def render_page(groups: list[Group]) -> str:
    from stages.pages.environment import environment
    from stages.pages.plots import Point, frontier

    plots = []
    for group in groups:
        points = [Point(s.kl, s.interval, s.is_sft, s.is_front) for s in group.settings]
        plots.append((group, frontier(points)))
    page = environment().get_template("compare.html.jinja")
    return page.render(settings_text=settings_text, groups=plots)
