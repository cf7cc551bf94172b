"""`stage=gate`: end with an exit code that says whether a policy is worse than an earlier one, or than another model of its
own run. Nothing is built.

The codes are 0: not worse by `gate.margin`, 1: worse, 3: too few prompts to tell, 2: other prompts or settings of the
answers, so that nothing can be compared, or an error. `gate.json` in the store gives the reasons."""

import json
import logging
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from rich.table import Table

from stages.commands.finished_run import newest_end, require_nodes
from stages.commands.result import Result, new_table, null_for_nan, print_parts
from stages.config.choices import Role
from stages.config.errors import UserError, visible
from stages.config.exit_codes import GateCode
from stages.config.schema import Config, Gate
from stages.config.stage_table import Target
from stages.evaluation import claims, measures
from stages.evaluation.claims import Claim
from stages.evaluation.gated_groups import GroupLine, deciding_groups, group_lines, groups_by_name
from stages.evaluation.measures import LENGTH, POLICY, Measure
from stages.evaluation.noninferiority import (
    Line,
    claim_of_all,
    compare,
    needed,
    outcome,
    read_measures,
)
from stages.evaluation.results import Learnt, read_results
from stages.pages.control_name import name_control
from stages.pipeline import provenance
from stages.store import safe_files
from stages.store.manifest import command_of, edited_source, manifest_of
from stages.store.node import Node, published_node
from stages.store.numbers import points, signed
from stages.store.plugins import user_path
from stages.store.sealed_json import rebuild_command
from stages.store.stage_sources import EditedSource
from stages.store.store import Store

log = logging.getLogger(__name__)

AS_RECORDED = "as recorded"
COLUMNS = ("measure", "prompts", "before", "after", "difference", "outcome")


@dataclass(frozen=True)
class Side:
    """The evaluations of one model, one per seed, the first seed last: folders and measures. `checks_version`: of
    `stage=eval`. `edited`: its source, if it was edited. `settings`: those of the answers and the verdict. `role`: the
    model's, and `title` its name; `before`: the role of the model that the policy was trained from. `note`: why nothing
    can be said of it, or ''. `learnt`: what a policy learnt of held-out pairs, with the first seed; None of another
    model."""

    folders: list[Path]
    checks_version: int
    edited: EditedSource | None
    measures_by_seed: list[dict[str, dict[str, Measure]]]
    settings: dict[str, object]
    role: str
    title: str
    before: str
    note: str
    learnt: Learnt | None

    @classmethod
    def read(cls, folders: list[Path], store: Store, role: str = POLICY) -> Self:
        store.verify(*folders)
        first_seed = folders[-1]
        results = name_control(read_results(first_seed))
        manifest = manifest_of(first_seed)
        return cls(
            folders=folders,
            checks_version=manifest["version"],
            edited=edited_source(manifest),
            measures_by_seed=[read_measures(folder, role) for folder in folders],
            settings={"decoding": results.decoding, "endpoint": results.endpoint},
            role=role,
            title=results.models[role],
            before=results.before,
            note=claims.note_of_run(results),
            learnt=results.learnt if role == POLICY else None,
        )

    @property
    def name(self) -> str:
        return f"{self.title} {self.folders[-1].name}"

    @property
    def measured_files(self) -> set[tuple[str, str]]:
        """The fingerprint of each evaluation with the digest of its measures, wherever its folder is."""
        manifests = [manifest_of(folder) for folder in self.folders]
        return {(m["fingerprint"], m["files"][measures.FILE]["sha256"]) for m in manifests}


@dataclass
class GateResult(Result):
    """The comparison of two models. `code`: the exit code; `claim`: what the comparison says, and `claims` what each of its
    measures does; `groups`: of held-out pairs, by `eval.by`; `needed`: the number of prompts that would decide; `before`, `after`: the folders of the evaluations.
    """

    code: GateCode
    outcome: str
    title: str
    claim: Claim
    claims: dict[str, Claim]
    needed: int | None
    reasons: list[str]
    lines: list[Line]
    groups: list[GroupLine]
    before: list[Path]
    after: list[Path]

    @property
    def sentence(self) -> str:
        """The claim as a sentence: the last line of the command."""
        return f"{self.title}: {self.claim.with_figure('gate')}."

    def show(self) -> None:
        table = new_table(*COLUMNS, title=self.title)
        for line in self.lines:
            table.add_row(*map(visible, cells(line)))
        print_parts(table)
        if self.groups:
            print_parts(groups_table(self.groups))
        if self.code is not GateCode.cannot_tell:  # unclear measures stand in the table
            print_parts(*map(visible, self.reasons))
        print_parts(visible(self.sentence))

    def end_with_exit_code(self) -> None:
        """End the process with the exit code."""
        sys.exit(self.code)


def run(
    cfg: Config, store: Store, typed_graph: dict[str, Node], overrides: list[str]
) -> GateResult:
    """Compare the run's policy with what `gate.against` names, and write the comparison into the store. `typed_graph`: the
    graph of the typed settings, or empty. Raise UserError if an evaluation is missing, or if both are the same."""
    # none, or another user's: an earlier comparison must not be taken for this one
    with suppress(OSError):
        (store.root / "gate.json").unlink()
    if not cfg.gate.against:
        raise UserError(
            "gate.against=null: name a model of this run (sft, base or control), an evaluation or report by its "
            "fingerprint, or a folder with one."
        )
    typed = [node for node in typed_graph.values() if node.stage == Target.eval]
    require_nodes(typed, cfg, store, overrides)
    new = Side.read([*map(store.folder, typed)] or latest_evaluations(store), store)
    old = other_side(new, cfg.gate.against, store)
    result = compare_sides(old, new, cfg.gate)
    write_result(result, store.root)
    return result


def other_side(new: Side, against: str, store: Store) -> Side:
    """Return what `gate.against` names: another model of the new run, or the policy of an earlier one. Raise UserError if
    it names none, or the new policy itself."""
    models = read_results(new.folders[0]).models
    if against in [*Role] and against not in models:
        choices = " or ".join(f"gate.against={role}" for role in models if role != POLICY)
        problem = f"gate.against={against}: {new.folders[0]} has no such model"
        if against == Role.control:
            evaluation = command_of(manifest_of(new.folders[0]))
            choices += f", or evaluate plain SFT too: {evaluation} control=true"
        raise UserError(f"{problem}. Type {choices}")
    if against in models:
        old = Side.read(new.folders, store, role=against)
    else:
        old = Side.read(earlier_evaluations(store, against), store)
    if old.role == new.role and old.measured_files == new.measured_files:
        outputs = f"outputs={store.root}"
        command = provenance.command("gate", [outputs, f"gate.against={new.before}"])
        raise UserError(
            f"gate.against={against}: this is the evaluation {new.folders[0]} itself, so that nothing is compared. "
            f"Name an earlier one, or compare its policy with {new.before} of the same run: {command}"
        )
    return old


def compare_groups(old: Side, new: Side, note: str) -> list[GroupLine]:
    """Return the groups of held-out pairs of two policies, or of a policy and the model before it. Of other models no
    evaluation knows the groups. `note`: why nothing can be said, or ''."""
    if old.role not in (POLICY, new.before):
        return []
    # an earlier policy without groups is not the model before training, whose share is one half
    earlier = groups_by_name(old.learnt) if old.role == POLICY else None
    return group_lines(earlier, new.learnt, note)


def compare_sides(old: Side, new: Side, gate: Gate) -> GateResult:
    """Return the comparison of two models, with the measures that decide it as reasons, or why there is none."""
    note = new.note or old.note
    lines = compare(old.measures_by_seed, new.measures_by_seed, gate.margin, gate.confidence, note)
    groups = compare_groups(old, new, note)
    lines += deciding_groups(groups, gate.margin)
    reasons = reasons_not_to_compare(old, new)
    code = outcome(lines)
    claim = claim_of_all(lines, note)
    if reasons:
        code = GateCode.other_prompts
        claim = claims.gate(code, reasons[0])
    for line in lines:
        if line.code is code and code is not GateCode.passes:
            reasons.append(f"{line.measure}: {outcome_text(line)}")
    if not lines:
        reasons.append(f"nothing was measured of both {old.title} and {new.title}")
    return GateResult(
        code=code,
        outcome=claim.says("gate"),
        title=f"{new.name} against {old.name}",
        claim=claim,
        claims={line.measure: line.claim for line in lines},
        needed=needed(lines),
        reasons=reasons,
        lines=lines,
        groups=groups,
        before=old.folders,
        after=new.folders,
    )


def reasons_not_to_compare(old: Side, new: Side) -> list[str]:
    """Return why two evaluations cannot be compared: other settings of the answers, or other checks."""
    reasons = []
    for key, before in old.settings.items():
        if before != new.settings[key]:
            reasons.append(f"{key}: {before} before, {new.settings[key]} now")
    if old.checks_version != new.checks_version:
        older = old if old.checks_version < new.checks_version else new
        remade = rebuild_command(older.folders[0])
        reasons.append(
            f"versions of the checks: {old.checks_version} before, {new.checks_version} now. To make it again: {remade}"
        )
    if old.edited != new.edited:
        reasons.append(
            f"source of eval: {old.edited or AS_RECORDED} before, {new.edited or AS_RECORDED} now. Undo the edit, or "
            "make both again with it."
        )
    return reasons


def write_result(result: GateResult, root: Path) -> None:
    """Write the comparison as `gate.json`, unless the store is read-only."""
    content = json.dumps(null_for_nan(asdict(result)), indent=1).encode()
    if safe_files.write_if_allowed(root / "gate.json", content):
        log.info("Written: %s", root / "gate.json")


def latest_evaluations(store: Store) -> list[Path]:
    """Return the evaluations of a store's last run, one per seed. Raise UserError if there is none."""
    end = newest_end(store, Target.report, Target.eval)
    if end is None:
        raise UserError(
            f"{store.root} has no evaluation. Make one: {provenance.command('report', [])}"
        )
    return evaluations_of(store.folder(end), store)


def earlier_evaluations(store: Store, against: str) -> list[Path]:
    """Return the evaluations that `gate.against` names: the folder of an evaluation, of a report or of a store, or the
    fingerprint of an evaluation, a report or a policy in this store."""
    folder = user_path(against)
    is_store = (folder / "latest").is_dir()
    if is_store:
        return latest_evaluations(Store(folder))
    is_node = (folder / "manifest.json").exists()
    if is_node:
        return evaluations_of(folder, Store(folder.parent.parent))
    published = [*store.manifests(Target.eval), *store.manifests(Target.report)]
    for folder, manifest in reversed(published):
        policy = manifest["inputs"].get("policy", {}).get("fingerprint")
        if against in (manifest["fingerprint"], policy):
            return evaluations_of(folder, store)
    problem = f"gate.against={against}: {store.root} has no such evaluation, report or policy"
    command = provenance.command(Target.report, [f"outputs={store.root}"])
    raise UserError(f"{problem}. Correct the fingerprint or the folder, or make one: {command}")


def evaluations_of(folder: Path, store: Store) -> list[Path]:
    """Return the folder of an evaluation itself, and for a report of this store the evaluations that it shows, fetched
    if only the mirror has them. Raise UserError for any other node, or if an evaluation is missing."""
    manifest = manifest_of(folder)
    if manifest["stage"] == Target.eval:
        return [folder]
    fingerprints = [
        e["fingerprint"] for e in manifest["inputs"].values() if e["stage"] == Target.eval
    ]
    if not fingerprints:
        raise UserError(
            f"gate.against: {folder} is no evaluation or report. A policy is named by its fingerprint."
        )
    seen = dict[str, Node]()
    nodes = [
        published_node(store.root, Target.eval, fingerprint, seen) for fingerprint in fingerprints
    ]
    for node in nodes:
        if not store.folder(node).exists() and not store.fetch(node):
            problem = f"stage=gate: {folder} shows {node}, which is not in {store.root}"
            raise UserError(f"{problem}. To build it again: {rebuild_command(folder)}")
    return [store.folder(node) for node in nodes]


def cells(line: Line) -> list[str]:
    """Return the cells of a line; of a measure that has no prompts in common only the reason."""
    if not line.prompts:
        return [line.measure, "", "", "", "", outcome_text(line)]
    difference = line.difference
    change = change_text(line, difference.mean)
    bounds = f"{change_text(line, difference.low)} to {change_text(line, difference.high)}"
    if line.seeds:
        lowest, highest = line.seeds
        bounds += f"; seeds {change_text(line, lowest)} to {change_text(line, highest)}"
    return [
        line.measure,
        f"{line.prompts:,}",
        value_text(line, line.before),
        value_text(line, line.after),
        f"{change} ({bounds})",
        outcome_text(line),
    ]


def groups_table(groups: list[GroupLine]) -> Table:
    """Return the table of the groups of held-out pairs. What it shows decides only where a group is worse."""
    numbers = ("pairs", "before", "after", "margin, nats a token")
    table = new_table("better answers favoured where", numbers=numbers)
    for line in groups:
        name = f"{line.group}: reversed" if line.is_worse or line.is_unknown else line.group
        before = line.before.share() if line.before else "not measured"
        shares = (before, line.after.share())
        margin = signed(line.margin.mean, "{:+.3g}")
        table.add_row(visible(name), f"{line.pairs:,}", *shares, margin)
    return table


def is_share(line: Line) -> bool:
    return line.measure != LENGTH and 0 <= line.before <= 1 and 0 <= line.after <= 1


def value_text(line: Line, value: float) -> str:
    """Return a mean as text: a share in percent, others plain."""
    return f"{100 * value:.1f}%" if is_share(line) else f"{value:.2f}"


def change_text(line: Line, change: float) -> str:
    """Return a difference as text: of lengths in percent, of shares in points, of others plain."""
    if line.measure == LENGTH:
        return signed(change, "{:+.1%}")
    return points(change) if is_share(line) else signed(change, "{:+.3f}")


def outcome_text(line: Line) -> str:
    """Return what the comparison of a measure says; if it cannot tell, with the number of prompts that would."""
    claim = line.claim
    return "; ".join(filter(None, (claim.says("gate"), claim.figure)))
