"""`stage=parity`: train the first steps of a stage by plain TRL too, and compare rows, steps and weights.

The missing inputs of the stage are built. Both trained models are dropped.
"""

import math
import operator
import os
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from stages.commands import plain_trl
from stages.commands.plain_trl import FirstSteps, Setup, TokenRow, Tokens
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import SFT
from stages.config.choices import Sharding, Upstream
from stages.config.errors import UserError, visible
from stages.config.schema import Config, Parity
from stages.models.contract import Contract
from stages.models.scoring import ROUNDING_GAP
from stages.pipeline.build import build, require_inputs
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import StageDir
from stages.training.trainer import count_warmup_steps

SET_UP = {"sft": plain_trl.set_up_sft, "dpo": plain_trl.set_up_dpo, "reward": plain_trl.set_up_reward}
OF_RATES = {"learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"}
# Differences of a row by design.
TAIL = "the template puts white space after the end of turn. It is left out here; TRL reads it, and DPO trains it"
TRUNCATED = "a truncated completion has no end of turn here. TRL adds one"
SAMPLED = "the sampled token ids are trained here. TRL tokenises their text, into other tokens"
PARTLY_TRAINED = "an assistant turn is not trained here. TRL trains every turn"
BY_DESIGN = {TAIL, TRUNCATED, SAMPLED, PARTLY_TRAINED}
# Other differences of a row.
IDS, MASK, MISSING = "other token ids", "other trained tokens", "left out by TRL"


RATE = "learning_rate"  # in a trainer's log


class RowReport(NamedTuple):
    """The number of rows by difference, and the first difference that is not by design, or ''."""

    differences: Counter[str]
    example: str


class Check(NamedTuple):
    """A comparison of both sides: its name, whether they differ by more than rounding, and what was measured."""

    name: str
    differs: bool
    measured: str


def show(cfg: Config, node: Node, store: Store, overrides: list[str]) -> None:
    """Build the inputs of the node, train its first steps by both trainers, and print steps and checks.

    Raises:
        UserError: naming what differs by more than rounding.
    """
    if isinstance(node.config, SFT) and not node.config.train:
        raise UserError("parity.stage=sft: sft=none trains nothing. Set parity.stage=dpo.")
    if cfg.upstream is Upstream.require:
        require_inputs([node], store, overrides)
    build([*node.inputs.values()], store, cfg, overrides)
    inputs = {role: store.folder(each) for role, each in node.inputs.items()}
    store.verify(*inputs.values())
    if "reference" in inputs:
        inputs["reference_model"] = store.folder(node.inputs["reference"].inputs["reference"])
    console = Console(width=None if os.isatty(1) else 120, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        out = StageDir(Path(folder), lambda metrics, step: None)
        checks = compare(SET_UP[node.stage](reduce_block(node.config), inputs, out), cfg.parity, console)
    table = Table("compared", "equal", "measured", box=None, header_style="bold", pad_edge=False)
    for check in checks:
        table.add_row(check.name, "no" if check.differs else "yes", visible(check.measured))
    console.print(table)
    if different := [f"{check.name}: {check.measured}" for check in checks if check.differs]:
        raise UserError(f"stage=parity: {node.stage} differs from TRL's. {'. '.join(different)}.")


def reduce_block(block: Any) -> Any:
    """Return a training block for this process alone, without packing, evaluations, samples and checkpoints."""
    runtime = {"processes": 1, "nodes": 1, "sharding": Sharding.none, "save_steps": 10**9, "save_minutes": 1e6}
    runtime |= {"samples": 0} if isinstance(block.runtime, SampledRuntime) else {}
    unpacked = {"packing": False} if isinstance(block, SFT) else {}
    return replace(block, evaluations=0, runtime=replace(block.runtime, **runtime), **unpacked)


def compare(setup: Setup, cfg: Parity, console: Console) -> list[Check]:
    """Train both sides, print the steps and what differs by design, and return the checks. TRL trains on our token
    ids if its rows only differ by design, else on its own."""
    fit = setup.fit
    own, ids, data = plain_trl.train_ours(setup, cfg.steps)
    unchanged = plain_trl.trl_arguments(setup, own.total)
    trainer = plain_trl.build_trl_trainer(setup, cfg, ids, own.total)
    rows = compare_rows(own.rows, plain_trl.collate_by_position(trainer), fit.contract)
    if not rows.example:
        trainer.train_dataset = data
    settings = changed_settings(setup, cfg, trainer, unchanged)
    warmup = count_warmup_steps(fit.args.warmup_steps, own.total) if OF_RATES.isdisjoint(cfg.trl) else 0
    trl = plain_trl.train_trl(trainer, len(own.figures), own.figures if warmup else [])
    console.print(steps_table(own, trl))
    for note in design_notes(setup, rows.differences, len(ids), warmup):
        console.print(f"By design: {note}")
    checks = [*row_checks(own, trl, rows), *step_checks(own, trl, ROUNDING_GAP[fit.cfg.precision], bool(warmup))]
    matters = any(check.differs for check in checks)
    return [*checks, Check("settings", bool(settings) and matters, "; ".join(settings) or "the same arguments of TRL")]


def changed_settings(setup: Setup, cfg: Parity, trainer: Any, unchanged: Any) -> list[str]:
    """Return TRL's arguments, template and EOS token that `parity` changed."""
    tokenizers = setup.fit.contract.tokenizer, trainer.processing_class
    values = {name: (getattr(unchanged, name), getattr(trainer.args, name)) for name in cfg.trl}
    values["eos_token"] = tokenizers[0].eos_token, tokenizers[1].eos_token
    settings = [
        f"{name} is {here} here, and {there} in TRL" for name, (here, there) in values.items() if here != there
    ]
    is_other = tokenizers[0].chat_template != tokenizers[1].chat_template
    return settings + ([f"TRL's chat template is {cfg.template}"] if is_other else [])


def compare_rows(own: list[TokenRow], trl: dict[int, TokenRow], contract: Contract) -> RowReport:
    """Compare our rows with those that TRL has not left out, by position."""
    differences, example = Counter[str](), ""
    for position, row in enumerate(own):
        other = trl.get(position)
        reasons = set[str]() if other else {MISSING}
        for tokens, trl_tokens in zip(row.sequences, other.sequences if other else (), strict=False):
            new = find_differences(tokens, trl_tokens, contract, row.partly)
            if not example and not new <= BY_DESIGN:
                example = f"row {position + 1}, {describe_first(tokens, trl_tokens, contract)}"
            reasons |= new
        differences.update(reasons)
    return RowReport(differences, example or (MISSING if MISSING in differences else ""))


def find_differences(own: Tokens, trl: Tokens, contract: Contract, partly: bool | None) -> set[str]:
    """Return the differences of a sequence. `partly`: whether an SFT row has an untrained turn; None for pairs."""
    (ids, marks), (trl_ids, trl_marks), decode = own, trl, contract.tokenizer.decode
    text, trl_text, end = decode(ids), decode(trl_ids), decode(contract.stop_ids[:1])
    same_ids, rest = trl_ids[: len(ids)] == ids, trl_text.removeprefix(text)
    differences = set() if same_ids else {SAMPLED}
    if rest.startswith(end) and not text.endswith(end):
        differences.add(TRUNCATED)
        rest = rest.removeprefix(end)
    if rest.strip() or not trl_text.startswith(text) or not (same_ids or partly is None):
        return {IDS}
    if same_ids and marks != trl_marks[: len(ids)]:
        differences.add(PARTLY_TRAINED if partly and all(map(operator.le, marks, trl_marks)) else MASK)
    return differences | ({TAIL} if rest else set())


def describe_first(own: Tokens, trl: Tokens, contract: Contract) -> str:
    """Describe the first token in which two sequences differ, with the text before it."""
    decode, sides = contract.tokenizer.decode, zip_longest(zip(*own, strict=True), zip(*trl, strict=True))
    place, tokens = next((i, pair) for i, pair in enumerate(sides) if pair[0] != pair[1])
    words = [f"{decode([t[0]])!r}{'' if t[1] else ' (not trained)'}" if t else "the end" for t in tokens]
    return f"token {place + 1}, after {decode(own[0][:place])[-30:]!r}: {words[0]} here, {words[1]} in TRL"


def design_notes(setup: Setup, differences: Counter[str], rows: int, warmup: int) -> list[str]:
    """Return what Plumbline does otherwise than TRL in this configuration, and both sides do alike here."""
    fit, unit = setup.fit, setup.fit.cfg.objective.unit
    notes = [f"{n} of {rows} {unit}: {reason}." for reason, n in differences.items() if reason in BY_DESIGN]
    notes += [
        f"{n} {unit} are dropped here: {reason}. TRL cuts or drops them." for reason, n in fit.rows.dropped.items()
    ]
    if left_out := fit.schedule.left_out:
        notes.append(
            f"{left_out} {unit} that fill no batch wait for the next epoch. TRL makes a smaller batch of them."
        )
    if warmup:
        notes.append(f"the warm-up takes {warmup} steps and starts above 0. TRL's starts at 0, and used our rates.")
    return notes


def steps_table(own: FirstSteps, trl: FirstSteps) -> Table:
    table = Table("step", box=None, header_style="bold", pad_edge=False)
    for title in ("loss", "gradient norm", "learning rate", "trained tokens"):
        table.add_column(title, justify="right")
        table.add_column("TRL", justify="right")
    for step, figures in enumerate(zip(own.figures, trl.figures, strict=True)):
        cells = [f"{side[name]:.7g}" for name in ("loss", "grad_norm", RATE) for side in figures]
        table.add_row(str(step + 1), *cells, str(own.trained[step]), str(trl.trained[step]))
    return table


def row_checks(own: FirstSteps, trl: FirstSteps, rows: RowReport) -> list[Check]:
    """Return the checks of token ids and of trained tokens."""
    total, count = len(own.rows), rows.differences
    others = ", ".join(f"{count[name]} of {total} rows {name}" for name in (IDS, MASK, MISSING) if count[name])
    tokens = f"{sum(own.trained)} here, {sum(trl.trained)} in TRL"
    tokens += f", {trl.trained_padding} of them padding" if trl.trained_padding else ""
    is_masked_otherwise = MASK in count or trl.trained_padding > 0 or (not rows.example and own.trained != trl.trained)
    return [
        Check("rows", bool(rows.example), f"{others}; {rows.example}" if others else f"{total} rows"),
        Check("trained tokens", is_masked_otherwise, tokens),
    ]


def step_checks(own: FirstSteps, trl: FirstSteps, tolerance: float, same_rates: bool) -> list[Check]:
    """Return the checks of learning rates and losses, and the largest difference of a weight."""
    steps = [*zip(own.figures, trl.figures, strict=True)]
    rates = [i for i, (a, b) in enumerate(steps, 1) if not math.isclose(a[RATE], b[RATE], rel_tol=1e-6)]
    gaps = [abs(a["loss"] - b["loss"]) / max(1.0, abs(a["loss"])) for a, b in steps]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    weights = {name: float((weight - trl.weights[name]).abs().max()) for name, weight in own.weights.items()}
    largest = max(weights, key=weights.__getitem__)
    other_rates = f"TRL's own differ from step {rates[0]}" if rates else "equal in every step"
    return [
        Check(RATE.replace("_", " "), bool(rates) and not same_rates, other_rates),
        Check(
            "loss",
            gaps[worst] > tolerance,
            f"at most {gaps[worst]:.1e} apart, in step {worst + 1}; {tolerance:g} is rounding",
        ),
        Check("weights", False, f"at most {weights[largest]:.1e} apart, in {largest}"),
    ]
