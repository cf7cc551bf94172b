"""`stage=gate`: end with an exit code that says whether a policy is worse than an earlier one. Nothing is built.

The codes are 0: not worse by `gate.margin`, 1: worse, 3: too few prompts to tell, 2: other prompts or settings of the
answers, so that nothing can be compared, or an error. `gate.json` and `gate.md` in the store give the reasons."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from stages.commands.finished_run import newest_end, require_nodes
from stages.commands.result import Result, finite, print_parts
from stages.config.errors import UserError, visible
from stages.config.exit_codes import GateCode
from stages.config.schema import Config, Target
from stages.evaluation import measures
from stages.evaluation.measures import LENGTH, Measure
from stages.evaluation.noninferiority import Line, by_measure, compare, outcome
from stages.pipeline import provenance
from stages.store import safe_files
from stages.store.manifest import manifest_of
from stages.store.node import Node
from stages.store.numbers import points, signed
from stages.store.plugins import user_path
from stages.store.records import load
from stages.store.sealed_json import load_json, rebuild_command, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

WORDS = dict(zip(GateCode, ("not worse", "worse", "not comparable", "cannot tell"), strict=True))
COLUMNS = ("measure", "prompts", "before", "after", "difference", "± noise", "outcome")


@dataclass(frozen=True)
class Side:
    """The evaluations of one policy, one per seed: their folders, measures and results. `version`: of `stage=eval`."""

    folders: list[Path]
    version: int
    runs: list[dict[str, dict[str, Measure]]]
    results: dict[str, Any]

    @classmethod
    def read(cls, folders: list[Path], store: Store) -> "Side":
        store.verify(*folders)
        rows = [load(folder / measures.FILE, Measure) for folder in folders]
        results = load_json(
            folders[0] / "results.json", require_keys("models", "decoding", "endpoint")
        )
        return cls(
            folders,
            manifest_of(folders[0])["version"],
            [by_measure(each) for each in rows],
            results,
        )


@dataclass
class GateResult(Result):
    """The comparison of two policies. `code`: the exit code; `before`, `after`: the folders of their evaluations."""

    code: GateCode
    outcome: str
    title: str
    reasons: list[str]
    lines: list[Line]
    before: list[Path]
    after: list[Path]

    def show(self) -> None:
        table = Table(
            *COLUMNS,
            title=self.title,
            title_justify="left",
            box=None,
            header_style="bold",
            pad_edge=False,
        )
        for line in self.lines:
            table.add_row(*map(visible, cells(line)))
        # unclear measures stand in the table
        below = [] if self.code is GateCode.cannot_tell else self.reasons
        print_parts(table, *map(visible, below))

    def end(self) -> None:
        """End the process with the exit code."""
        sys.exit(self.code)


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> GateResult:
    """Compare the run's policy with that of `gate.against`, and write the comparison into the store.
    `nodes`: the graph of the typed settings, or empty. Raise UserError if an evaluation is missing."""
    for name in ("gate.json", "gate.md"):
        # none, or another user's: an earlier comparison must not be taken for this one
        with suppress(OSError):
            (store.root / name).unlink()
    if not cfg.gate.against:
        raise UserError(
            "gate.against=null: name an evaluation or report by its fingerprint, or a folder with one."
        )
    typed = [node for node in nodes.values() if node.stage == Target.eval]
    require_nodes(typed, cfg, store, overrides)
    old = Side.read(earlier_evaluations(store, cfg.gate.against), store)
    new = Side.read([*map(store.folder, typed)] or latest_evaluations(store), store)
    if old.folders == new.folders:
        log.warning(
            "Both sides are the evaluation %s, so there is nothing to compare.", old.folders[0]
        )
    differing = [key for key in ("decoding", "endpoint") if old.results[key] != new.results[key]]
    reasons = [f"{key}: {old.results[key]} before, {new.results[key]} now" for key in differing]
    if old.version != new.version:
        remade = rebuild_command(min(old, new, key=lambda side: side.version).folders[0])
        reasons.append(
            f"versions of the checks: {old.version} before, {new.version} now. To make it again: {remade}"
        )
    lines = compare(old.runs, new.runs, cfg.gate.margin, cfg.gate.confidence)
    code = GateCode.other_prompts if reasons else outcome(lines)
    reasons += [
        f"{line.measure}: {outcome_text(line)}" for line in lines if line.code is code and code
    ]
    title = f"{new.results['models']['policy']} {new.folders[-1].name} against {old.folders[-1].name}: {WORDS[code]}"
    result = GateResult(code, WORDS[code], title, reasons, lines, old.folders, new.folders)
    content = json.dumps(finite(asdict(result)), indent=1).encode()
    written = safe_files.write_if_allowed(store.root / "gate.json", content)
    if written and safe_files.write_if_allowed(
        store.root / "gate.md", markdown(title, reasons, lines)
    ):
        log.info("Written: %s and gate.md", store.root / "gate.json")
    return result


def latest_evaluations(store: Store) -> list[Path]:
    """Return the evaluations of a store's last run, one per seed. Raise UserError if there is none."""
    if not (end := newest_end(store, Target.report, Target.eval)):
        raise UserError(
            f"{store.root} has no evaluation. Make one: {provenance.command('report', [])}"
        )
    return evaluations_of(store.folder(end))


def earlier_evaluations(store: Store, against: str) -> list[Path]:
    """Return the evaluations that `gate.against` names: the folder of an evaluation, of a report or of a store, or the
    fingerprint of an evaluation, a report or a policy in this store."""
    folder = user_path(against)
    if (folder / "latest").is_dir():
        return latest_evaluations(Store(folder))
    if (folder / "manifest.json").exists():
        return evaluations_of(folder)
    nodes = [*store.manifests(Target.eval), *store.manifests(Target.report)]
    policies = {path: m["inputs"].get("policy", {}).get("fingerprint") for path, m in nodes}
    if not (named := [path for path, m in nodes if against in (m["fingerprint"], policies[path])]):
        raise UserError(
            f"gate.against={against}: {store.root} has no such evaluation, report or policy."
        )
    return evaluations_of(named[-1])


def evaluations_of(folder: Path) -> list[Path]:
    """Return a node of an evaluation itself, and the evaluations that a report shows, the first seed last."""
    manifest = manifest_of(folder)
    if manifest["stage"] == Target.eval:
        return [folder]
    evaluations = [
        entry["fingerprint"]
        for entry in manifest["inputs"].values()
        if entry["stage"] == Target.eval
    ]
    if not evaluations:
        raise UserError(
            f"gate.against: {folder} is no evaluation or report. A policy is named by its fingerprint."
        )
    return [folder.parent.parent / Target.eval / fingerprint for fingerprint in evaluations]


def cells(line: Line) -> Iterator[str]:
    """Yield the cells of a line: shares in percent and points, lengths in characters and percent, others plain."""
    in_points = (
        line.measure != LENGTH
        and 0 <= min(line.before, line.after) <= max(line.before, line.after) <= 1
    )
    show = (
        points
        if in_points
        else (lambda n: signed(n, "{:+.1%}" if line.measure == LENGTH else "{:+.3f}"))
    )
    yield line.measure
    if line.code is GateCode.other_prompts:
        yield from ("", "", "", "", "", line.note)
        return
    yield f"{line.prompts:,}"
    yield from (f"{100 * n:.1f}%" if in_points else f"{n:.2f}" for n in (line.before, line.after))
    seeds = f"; seeds {show(line.seeds[0])} to {show(line.seeds[1])}" if line.seeds else ""
    yield f"{show(line.difference.mean)} ({show(line.difference.low)} to {show(line.difference.high)}{seeds})"
    yield show((line.difference.high - line.difference.low) / 2).lstrip("+")
    yield outcome_text(line)


def outcome_text(line: Line) -> str:
    if line.code is GateCode.cannot_tell:
        way = "rose" if line.difference.mean > 0 else "fell"
        return (
            f"cannot tell; about {line.needed:,} prompts would"
            if line.needed
            else f"cannot tell, it rather {way}"
        )
    return line.note or WORDS[line.code]


def markdown(title: str, reasons: list[str], lines: list[Line]) -> bytes:
    """Return the comparison for the summary of a CI job."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, lines)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return "\n\n".join([f"### {title}", *(f"- {reason}" for reason in reasons), table, ""]).encode()
