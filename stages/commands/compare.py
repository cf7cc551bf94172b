"""`stage=compare`: evaluations side by side, in the terminal and in `outputs/compare.html`. Nothing is built.

A row is an evaluation in the store. Rates on different prompts do not stand in one table, and no row is called the
winner: the best of several is chosen by the prompts that measure it, so its own rate there is optimistic.
"""

import logging
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stages.cli.sweep import NODES
from stages.commands.settings import named, shown
from stages.config.errors import UserError, visible
from stages.config.schema import Compare
from stages.evaluation.outcomes import PRIMARY
from stages.pipeline import provenance
from stages.store import whole
from stages.store.kept import having, load_json
from stages.store.store import Manifest, Store

log = logging.getLogger(__name__)

Nodes = dict[tuple[str, str], tuple[Path, Manifest]]  # by stage and fingerprint
BLOCKS = {"base": "model"}  # else a stage's settings stand in the block of its name
VALUE, LABEL = 40, 60  # the longest in characters: a value in a line of settings, such a line in the figure


@dataclass
class Row:
    """An evaluation, with the settings of all it came from (`dpo.beta`) and the seconds that all of it took."""

    fingerprint: str
    prompts: tuple[str, str]  # the split, and the fingerprint of the data
    settings: dict[str, str]
    results: dict[str, Any]
    seconds: float
    command: str

    @property
    def rate(self) -> float:
        return float(self.results["primary"]["policy"]["mean"])

    @property
    def kl(self) -> float:
        return float(self.results["kl"]["policy"]["per_token"])


@dataclass
class Group:
    """Rows measured on the same prompts, the highest pass rate first."""

    rows: list[Row]

    @property
    def split(self) -> str:
        return self.rows[0].prompts[0]

    @property
    def primary(self) -> dict[str, Any]:
        """The first row's primary endpoint: how many prompts and tasks there are is the same in all."""
        return dict(self.rows[0].results["primary"])

    @property
    def models(self) -> dict[str, str]:
        """Roles and titles; where the rows' policies are of several objectives, theirs is no objective's."""
        titles = {row.results["models"]["policy"] for row in self.rows}
        return self.rows[0].results["models"] | ({} if len(titles) == 1 else {"policy": "policy"})

    @property
    def columns(self) -> dict[str, list[str]]:
        """The settings that differ between the rows; those that always move together share a column."""
        together: dict[tuple[str, ...], list[str]] = {}
        for key in sorted({key for row in self.rows for key in row.settings}):
            values = tuple(row.settings.get(key, "–") for row in self.rows)
            if len(set(values)) > 1:
                together.setdefault(values, []).append(key)
        return {several(keys): list(values) for values, keys in together.items()}

    @property
    def usual(self) -> dict[str, str]:
        """What more than half of the rows have of the settings that differ."""
        most = {key: Counter(values).most_common(1)[0] for key, values in self.columns.items()}
        return {key: value for key, (value, rows) in most.items() if 2 * rows > len(self.rows)}

    @property
    def settings(self) -> list[str]:
        """Of each row, `dpo.beta=0.05, no sample`: in what it differs from the others, but for what is usual."""
        usual, columns = self.usual, self.columns
        told = []
        for i, row in enumerate(self.rows):
            its = {key.partition(".")[0] for key in row.settings}
            own = {key: values[i] for key, values in columns.items() if values[i] != usual.get(key)}
            stages = {key: key.partition(".")[0] for key in own}
            here = words({key: value for key, value in own.items() if stages[key] in its})
            absent = [f"no {stage}" for stage in sorted({*stages.values()} - its)]
            told.append(", ".join([*([here] if here else []), *absent]))
        return told

    @property
    def front(self) -> list[bool]:
        """Of each row, whether no other has a higher rate at no more KL, or less KL at no lower a rate."""
        return [
            not any(o.rate >= r.rate and o.kl <= r.kl and (o.rate, o.kl) != (r.rate, r.kl) for o in self.rows)
            for r in self.rows
        ]

    @property
    def note(self) -> str:
        """How far the first row may be trusted."""
        if len(self.rows) == 1:
            return ""
        words = shlex.split(self.rows[0].command)
        overrides = [o for o in words[words.index("run.py") + 1 :] if not o.startswith("answer.split=")]
        once = provenance.command("report", overrides)
        note = f"The best of {len(self.rows)} on the {self.split} prompts that choose it looks better than it is. "
        if self.split == "test":
            return note + "Choose by answer.split=validation, and read test once, with what is chosen."
        return f"{note}Read test once, with what is chosen; for the first row: {once}"


def show(store: Store, cfg: Compare) -> None:
    """Print a table for each set of prompts, and write the page.

    Raises:
        UserError: where there is nothing to compare.
    """
    groups = grouped(evaluations(store, cfg.sweep))
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    for group in groups:
        console.print(table(group))
        if len(group.rows) > 1:
            console.print(differences(group))
        if group.note:
            log.info("%s", group.note)
    page = store.root / "compare.html"
    whole.write(page, html(groups))
    log.info("The page: %s", page)


def evaluations(store: Store, sweep: str | None) -> list[Row]:
    """Every evaluation that is published, or those of a sweep."""
    nodes = {(m["stage"], m["fingerprint"]): (folder, m) for folder, m in store.manifests()}
    found = [key for key in nodes if key[0] == "eval"]
    if sweep is not None:
        jobs = [load_json(path, having()) for path in Path(sweep).glob(f"*/{NODES}")]
        if not jobs:
            raise UserError(f"compare.sweep={sweep} holds no jobs of a sweep: they lie in {store.root}/multirun/.")
        theirs = {fingerprint for job in jobs for name, fingerprint in job.items() if name.startswith("eval")}
        found = [key for key in found if key[1] in theirs]
    found = [key for key in found if sound(store, *nodes[key])]
    readable = [key for key in found if "models" in load_json(nodes[key][0] / "results.json", having())]
    if len(readable) < len(found):
        log.info("%d evaluations of an earlier version are left out.", len(found) - len(readable))
    if not readable:
        raise UserError("there is no evaluation to compare yet: stage=eval makes one.")
    return [row(key, nodes) for key in readable]


def sound(store: Store, folder: Path, manifest: Manifest) -> bool:
    """Whether an evaluation is as it was published; one that is not is said, and left out."""
    if wrong := store.damage(folder, manifest):
        log.warning("warning: %s is left out: it is damaged (%s). rebuild=eval builds it again.", folder, wrong)
    return not wrong


def row(key: tuple[str, str], nodes: Nodes) -> Row:
    folder, manifest = nodes[key]
    lineage = {key: manifest}
    waiting = [key]
    while waiting:  # the nearest first: of several rounds, the last is the one whose settings are shown
        for role, given in nodes[waiting.pop(0)][1]["inputs"].items():
            other = (given["stage"], given["fingerprint"])
            if other in nodes and other not in lineage and "outside" not in role and role != "retained":
                lineage[other] = nodes[other][1]
                waiting.append(other)
    settings: dict[str, str] = {}
    for m in lineage.values():
        block = "control" if m["settings"].get("control") else BLOCKS.get(str(m["stage"]), str(m["stage"]))
        found = named({"version": m["version"], **m["settings"]}, {"version": m["version"], **m["config"]}, block)
        # Files of one name may differ: the first digits of a file's digest stand beside it.
        told = {key: name if name == shown(value) else f"{name} ({value[:6]})" for key, value, name in found}
        settings = told | settings
    return Row(
        fingerprint=key[1],
        prompts=(settings["answer.split"], manifest["inputs"]["data"]["fingerprint"]),
        settings=settings,
        results=load_json(folder / "results.json", having()),
        seconds=sum(m["wall_seconds"] for m in lineage.values()),
        command=manifest["command"],
    )


def grouped(rows: list[Row]) -> list[Group]:
    by_prompts: dict[tuple[str, str], list[Row]] = {}
    for r in sorted(rows, key=lambda r: (-r.rate, r.kl)):
        by_prompts.setdefault(r.prompts, []).append(r)
    return [Group(found) for found in by_prompts.values()]


def table(group: Group) -> Table:
    """What came out, in 80 columns."""
    title = f"{group.primary['prompts']} {group.split} prompts of {group.primary['tasks']} tasks"
    shown = Table("", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    sft, policy = group.models["sft"], group.models["policy"]
    for name in ("pass rate, %", f"{policy} - {sft}", "KL", "tokens", "ended", "time"):
        shown.add_column(name, justify="right", no_wrap=True)
    for i, r in enumerate(group.rows):
        rate, gain = r.results["primary"]["policy"], r.results["primary"][PRIMARY]
        shown.add_row(
            f"{i + 1}{'*' if group.front[i] else ''}",
            f"{100 * rate['mean']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})",
            f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})",
            f"{r.kl:.4f}",
            f"{r.results['mean_tokens']['policy']:.1f}",
            f"{r.results['stop_rate']['policy']:.1%}",
            f"{r.seconds:.0f} s",
        )
    shown.caption, shown.caption_justify = f"* no other has a higher rate at no more KL from {sft}", "left"
    return shown


def differences(group: Group) -> Table:
    """Where the rows come from, in lines as long as the terminal is wide: any number of settings may differ."""
    shown = Table("", "eval", "settings", box=None, header_style="bold", pad_edge=False)
    for i, (r, settings) in enumerate(zip(group.rows, group.settings, strict=True)):
        shown.add_row(f"{i + 1}", r.fingerprint, visible(settings) or "as most")
    if group.usual:
        shown.add_row("", "most", visible(words(group.usual)))
    return shown


def html(groups: list[Group]) -> str:
    """The page: each table with its rates against KL."""
    from markupsafe import Markup

    from stages.pages import figures
    from stages.pages.environment import environment

    plots = []
    for group in groups:
        settings = [line if len(line) <= LABEL else "" for line in group.settings]
        points = [(r.kl, r.results["primary"]["policy"]) for r in group.rows]
        origins = sorted({r.results["primary"]["sft"]["mean"] for r in group.rows})
        plots.append(Markup(figures.pareto(points, group.front, settings, origins, group.models)))
    page = environment().get_template("compare.html.jinja")
    return page.render(words=words, groups=list(zip(groups, plots, strict=True)))


def several(keys: list[str]) -> str:
    return ", ".join(keys) if len(keys) <= 3 else f"{keys[0]}, {keys[1]} and {len(keys) - 2} more"


def words(settings: dict[str, str]) -> str:
    """`dpo.beta=0.05, dpo.seed=sft.seed=1`"""
    short = {key: value if len(value) <= VALUE else f"{value[:VALUE]}…" for key, value in settings.items()}
    return ", ".join(f"{key.replace(', ', '=')}={value}" for key, value in short.items())
