"""`stage=compare`: compare the runs of a store or a sweep in the terminal and in `outputs/compare.html`.

Evaluations are compared by pass rates. Each set of prompts has a separate table. The best setting's rate is optimistic, as the same prompts chose it: evaluate it once on test."""

import logging
from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table

from stages.commands.comparing.groups import Group, group_by_prompts
from stages.commands.comparing.measured import measured_rows
from stages.commands.node_settings import Nodes, settings_text
from stages.commands.result import Result, print_parts
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.evaluation.intervals import Interval
from stages.pipeline.provenance import JOB_NODES
from stages.store import safe_files
from stages.store.numbers import points
from stages.store.sealed_json import load_json, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

PAGE = "compare.html"  # in the store's root; `stage=gc` keeps the nodes that it shows


@dataclass
class ComparedSetting:
    """A model's figures: means over its runs, which differ in seeds. `kl`: nats per token from SFT. `best_at_kl`: no
    other setting has a higher rate at the same KL or less. `benchmarks`: rates by name."""

    name: str
    title: str
    pass_rate: Interval
    gain_over_sft: Interval | None
    kl: float
    best_at_kl: bool
    mean_tokens: float
    stop_rate: float
    seconds: float
    flops: float
    evaluations: list[str]
    benchmarks: dict[str, float]


@dataclass
class ComparedGroup:
    """Settings measured on the same prompts, the best first. `common_settings`: what most policies share."""

    title: str
    conclusion: str
    note: str
    gain_title: str
    settings: list[ComparedSetting]
    common_settings: dict[str, str]


@dataclass
class CompareResult(Result):
    """`page`: None in a store that is read-only."""

    groups: list[ComparedGroup]
    page: Path | None

    def show(self) -> None:
        for group in self.groups:
            has_benchmarks = any(setting.benchmarks for setting in group.settings)
            benchmarks = [benchmarks_table(group)] if has_benchmarks else []
            tables = group_table(group), *benchmarks, settings_table(group)
            print_parts(visible(group.conclusion), *tables)
            if group.note:
                log.info("%s", group.note)
        if self.page:
            log.info("Page: %s", self.page)
        else:
            log.info("The page is not written, as the store is read-only.")


def run(cfg: Config, store: Store, *_: object) -> CompareResult:
    """Compare the settings of each set of prompts, and write the page. Raise UserError without any evaluation."""
    chosen = nodes_of_sweep(store, cfg.compare.sweep)
    groups = group_by_prompts(measured_rows(store, published_nodes(store), chosen))
    if not groups:
        raise UserError("stage=compare: there is no evaluation yet. Make one with stage=eval.")
    page = store.root / PAGE
    written = safe_files.write_if_allowed(page, render_page(groups))
    return CompareResult([*map(compared_group, groups)], page if written else None)


def compared_group(group: Group) -> ComparedGroup:
    """Return the figures of a group."""
    settings = [
        ComparedSetting(
            name=setting.name,
            title=setting.title,
            pass_rate=setting.interval,
            gain_over_sft=setting.gain,
            kl=setting.kl,
            best_at_kl=setting.is_front,
            mean_tokens=setting.mean("tokens"),
            stop_rate=setting.mean("stop_rate"),
            seconds=setting.mean("seconds"),
            flops=setting.mean("flops"),
            evaluations=[run.fingerprint for run in setting.runs],
            benchmarks=setting.benchmarks,
        )
        for setting in group.settings
    ]
    caveat = f" {group.caveat.capitalize()}." if group.caveat else ""
    several = sum(each.is_sft for each in group.settings) > 1
    return ComparedGroup(
        title=group.title,
        conclusion=group.sentence + caveat,
        note=group.note,
        gain_title="over best SFT" if several else "over SFT",
        settings=settings,
        common_settings=group.common_settings,
    )


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


def group_table(group: ComparedGroup) -> Table:
    """Return the table of results, 80 columns wide."""
    table = empty_table(group.title, "passes, %", group.gain_title, "KL", "tokens", "ended")
    for i, setting in enumerate(group.settings):
        rate, gain = setting.pass_rate, setting.gain_over_sft
        table.add_row(
            f"{i + 1}{'*' if setting.best_at_kl else ''}",
            f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
            f"{points(gain.mean)} ({gain.bounds()})" if gain else setting.title,
            f"{setting.kl:.4f}",
            f"{setting.mean_tokens:.1f}",
            f"{setting.stop_rate:.1%}",
        )
    table.caption = "* no other setting has a higher rate at the same KL or less"
    table.caption_justify = "left"
    return table


def benchmarks_table(group: ComparedGroup) -> Table:
    """Return the table of benchmark rates in percent. A report has their intervals and paired differences."""
    names = dict.fromkeys(name for setting in group.settings for name in setting.benchmarks)
    table = empty_table("benchmarks, %", *names)
    for number, setting in enumerate(group.settings, 1):
        rates = setting.benchmarks
        cells = [f"{100 * rates[name]:.1f}" if name in rates else "–" for name in names]
        table.add_row(f"{number}", *cells)
    return table


def settings_table(group: ComparedGroup) -> Table:
    """Return the table of cost and of the settings that differ, as wide as the terminal."""
    cost = [Column(name, justify="right") for name in ("time", "FLOPs")]
    table = Table("", "eval", *cost, "settings", box=None, header_style="bold", pad_edge=False)
    for i, setting in enumerate(group.settings):
        runs, flops = " ".join(setting.evaluations), f"{setting.flops:.1e}"
        table.add_row(f"{i + 1}", runs, f"{setting.seconds:.0f} s", flops, visible(setting.name))
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
