"""`stage=compare`: compare the runs of a store or a sweep in the terminal and in `outputs/compare.html`.

Evaluations are compared by pass rates. Each set of prompts has a separate table. The best setting's rate is optimistic, as the same prompts chose it: evaluate it once on test."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from stages.commands.node_settings import COMPARE_PAGE, nodes_oldest_first
from stages.commands.result import Result, new_table, print_parts
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.config.stage_table import Target
from stages.extras.compare import Compare
from stages.extras.compare.groups import ComparedGroup, ComparedSetting, compare_groups
from stages.extras.compare.measured import measured_models
from stages.pipeline import provenance
from stages.store import safe_files
from stages.store.numbers import points, signed
from stages.store.sealed_json import load_json
from stages.store.store import Store

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("compare.html.jinja")


@dataclass
class CompareResult(Result):
    """`page`: None if it could not be written, as in a store that is read-only."""

    groups: list[ComparedGroup]
    page: Path | None

    def show(self) -> None:
        for group in self.groups:
            print_parts(visible(group.conclusion), settings_table(group))
            if coverage_names(group):
                print_parts(coverage_table(group))
            if names_of_groups(group):
                print_parts(groups_table(group))
            if group.note:
                log.info("%s", group.note)
        if self.page:
            log.info("Page: %s", self.page)


def run(cfg: Config, store: Store, *_: object) -> CompareResult:
    """Compare the settings of each set of prompts, and write the page. Raise UserError without any evaluation."""
    settings: Compare = vars(cfg)["compare"]
    chosen = fingerprints_of_sweep(store, settings.sweep)
    groups = compare_groups(measured_models(store, nodes_oldest_first(store), chosen))
    if not groups:
        problem = f"stage=compare: there is no evaluation in {store.root} yet"
        command = provenance.command(Target.eval, [f"outputs={store.root}"])
        raise UserError(f"{problem}. Make one with stage=eval: {command}")
    page = store.root / COMPARE_PAGE
    if safe_files.write_page(page, render_page(groups)):
        return CompareResult(groups, page)
    return CompareResult(groups, None)


def fingerprints_of_sweep(store: Store, sweep: str | None) -> set[str] | None:
    """Return the fingerprints of a sweep's nodes; None without a sweep. Raise UserError if the folder has none."""
    if sweep is None:
        return None
    fingerprints = set[str]()
    for path in Path(sweep).glob(f"*/{provenance.JOB_NODES}"):
        fingerprints |= load_json(path, provenance.fingerprints_of_job)
    if not fingerprints:
        raise UserError(
            f"compare.sweep={sweep} is not the folder of a sweep. Sweeps are in {store.root}/multirun/."
        )
    return fingerprints


def names_by_table(group: ComparedGroup) -> dict[str, list[str]]:
    """Return by table of extras the names of the rates that any setting has; without empty tables."""
    tables = dict[str, list[str]]()
    for title in group.settings[0].of_extras:
        names = names_in(setting.of_extras[title] for setting in group.settings)
        if names:
            tables[title] = names
    return tables


def coverage_names(group: ComparedGroup) -> list[str]:
    """Return the names of the figures of drawn answers that any setting has."""
    return names_in(setting.coverage for setting in group.settings)


def coverage_table(group: ComparedGroup) -> Table:
    """Return the table of pass@k and distinct answers, in percent."""
    numbers = [str(number) for number in range(1, len(group.settings) + 1)]
    table = new_table("drawn answers, %", numbers=numbers)
    for name in coverage_names(group):
        cells = [percent_or_dash(setting.coverage.get(name)) for setting in group.settings]
        table.add_row(name, *cells)
    return table


def percent_or_dash(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def names_of_groups(group: ComparedGroup) -> list[str]:
    """Return the groups of held-out pairs that any setting has."""
    return names_in(setting.groups for setting in group.settings)


def names_in(figures: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the names of figures that any setting has, in their order."""
    names = dict[str, float]()
    for of_setting in figures:
        names |= of_setting
    return list(names)


def groups_table(group: ComparedGroup) -> Table:
    """Return the table of held-out pairs by group: of each setting the share in order, and the margin."""
    numbers = [str(number) for number in range(1, len(group.settings) + 1)]
    table = new_table("better answers favoured, %, by nats a token", numbers=numbers)
    for name in names_of_groups(group):
        cells = [group_cell(setting, name) for setting in group.settings]
        table.add_row(visible(name), *cells)
    return table


def group_cell(setting: ComparedSetting, name: str) -> str:
    """Return a group's share in order with its margin: `96.0 by +0.021`; `–` if the setting has no such group."""
    if name not in setting.groups:
        return "–"
    margin = signed(setting.margins[name], "{:+.3g}")
    return f"{100 * setting.groups[name]:.1f} by {margin}"


def settings_table(group: ComparedGroup) -> Table:
    """Return the table of settings with their rates in percent."""
    numbers = ("passes, %", "over best SFT", "KL")
    table = new_table("", "settings", numbers=numbers, title=group.title)
    for number, setting in enumerate(group.settings, 1):
        rate = setting.pass_rate
        passes = f"{100 * rate.mean:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
        gain = ""
        if setting.gain_over_sft:
            gain = f"{points(setting.gain_over_sft.mean)} ({setting.gain_over_sft.bounds()})"
        place = f"{number}*" if setting.best_at_kl else str(number)
        table.add_row(place, visible(setting.name), passes, gain, f"{setting.kl:.4f}")
    table.caption = "* no other setting has a higher rate at the same KL or less"
    table.caption_justify = "left"
    return table


def render_page(groups: list[ComparedGroup]) -> str:
    from stages.pages.environment import page_template
    from stages.pages.plots import Point, frontier

    plots = []
    for group in groups:
        points = [Point(s.kl, s.pass_rate, s.is_sft, s.best_at_kl) for s in group.settings]
        names = (names_by_table(group), coverage_names(group), names_of_groups(group))
        plots.append((group, frontier(points), *names))
    page = page_template(TEMPLATE)
    return page.render(groups=plots, group_cell=group_cell)
