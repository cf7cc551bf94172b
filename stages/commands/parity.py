"""`stage=parity`: train the first steps of a stage by plain TRL too, and compare rows, steps and weights.

The missing inputs of the stage are built. Both trained models are dropped."""

import math
import operator
import os
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from stages.commands import plain_trl
from stages.commands.plain_trl import POSITION, FirstSteps, TokenRows, Tokens
from stages.config.blocks.runtimes import SampledRuntime
from stages.config.blocks.training import DPO, SFT
from stages.config.choices import Sharding, Upstream
from stages.config.errors import UserError, require_known, visible
from stages.config.schema import Config, Parity
from stages.config.trl_arguments import argument_types
from stages.hardware import process
from stages.models.scoring import ROUNDING_GAP
from stages.pipeline.build import build, require_inputs
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import StageDir
from stages.training.fit import Fit
from stages.training.trainer import count_warmup_steps

RATE = "learning_rate"  # in a trainer's log
OF_RATES = {RATE, "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"}
# Differences of rows by design.
TAIL = "the template puts white space after the end of turn. It is left out here; TRL reads it, and DPO trains it"
TRUNCATED = "a truncated completion has no end of turn here. TRL adds one"
SAMPLED = (
    "the sampled token ids are trained here. TRL tokenises their text, trimmed, into other tokens"
)
SOME_TURNS = "an assistant turn is not trained here. TRL trains every turn"
BY_DESIGN = {TAIL, TRUNCATED, SAMPLED, SOME_TURNS}
IDS, MASK, MISSING = "have other token ids", "have other trained tokens", "are left out by TRL"
# what is compared, True if it differs by more than rounding, and what was measured
Check = tuple[str, bool, str]


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> None:
    """Build the inputs, train the first steps by both trainers, and print. Raise UserError, naming what differs."""
    process.warn_of_versions()
    node = nodes[cfg.stage]
    if isinstance(node.config, SFT) and not node.config.train:
        raise UserError("parity.stage=sft: sft=none trains nothing. Set parity.stage=dpo.")
    if isinstance(node.config, DPO) and (
        node.config.reference_free or node.config.first_difference
    ):
        raise UserError(
            "stage=parity: TRL has neither simpo in DPO nor first_difference. Set parity.stage=sft."
        )
    require_known("parity.trl", cfg.parity.trl, argument_types(node.stage))
    if cfg.upstream is Upstream.require:
        require_inputs([node], store, overrides)
    build([*node.inputs.values()], store, cfg, overrides)
    inputs = {role: store.folder(each) for role, each in node.inputs.items()}
    store.verify(*inputs.values())
    if "reference" in inputs:
        inputs["reference_model"] = (
            store.folder(node.inputs["reference"].inputs["reference"]) / "model"
        )
    console = Console(width=None if os.isatty(1) else 120, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        out = StageDir(Path(folder), lambda metrics, step: None)
        fit = plain_trl.prepare_fit(reduce_block(node.config), inputs, out)
        checks = compare(fit, inputs, cfg.parity, console)
    table = Table("compared", "equal", "measured", box=None, header_style="bold", pad_edge=False)
    for name, differs, measured in checks:
        table.add_row(name, "no" if differs else "yes", visible(measured))
    console.print(table)
    if different := [f"{name}: {measured}." for name, differs, measured in checks if differs]:
        raise UserError(f"stage=parity: {node.stage} differs from TRL's. {' '.join(different)}")


def reduce_block(block: Any) -> Any:
    """Return a training block for this process alone, without packing, evaluations, samples and checkpoints."""
    runtime = {
        "processes": 1,
        "nodes": 1,
        "sharding": Sharding.none,
        "save_steps": 10**9,
        "save_minutes": 1e6,
    }
    runtime |= {"samples": 0} if isinstance(block.runtime, SampledRuntime) else {}
    unpacked = {"packing": False} if isinstance(block, SFT) else {}
    return replace(block, evaluations=0, runtime=replace(block.runtime, **runtime), **unpacked)


def compare(
    fit: Fit[Any, Any], inputs: plain_trl.Inputs, cfg: Parity, console: Console
) -> list[Check]:
    """Train both sides, print the steps and what differs by design, and return the checks. TRL trains on our token
    ids if its rows only differ by design, else on its own."""
    tokenizer = plain_trl.prepare_tokenizer(fit, cfg)
    own, ids, data, tokens = plain_trl.train_ours(fit, inputs, cfg.steps)
    trainer = plain_trl.build_trl_trainer(fit, inputs, cfg.trl, tokenizer, ids, own.total)
    trl_tokens = {
        row[POSITION]: plain_trl.collate_row(trainer, row) for row in trainer.train_dataset
    }
    every_turn = getattr(trainer.args, "assistant_only_loss", None)
    differences, example = compare_rows(tokens, trl_tokens, fit.contract.tokenizer, every_turn)
    other_rows = [
        f"{n} of {len(ids)} {name}" for name, n in differences.items() if name not in BY_DESIGN
    ]
    if not other_rows:
        trainer.train_dataset = data
    warmup = (
        count_warmup_steps(fit.args.warmup_steps, own.total) if OF_RATES.isdisjoint(cfg.trl) else 0
    )
    trl = plain_trl.train_trl(
        trainer, len(own.figures), [f[RATE] for f in own.figures] if warmup else []
    )
    console.print(steps_table(own, trl))
    for note in design_notes(fit, differences, warmup):
        console.print(f"By design: {note}")
    masked = MASK in differences or (not other_rows and own.trained != trl.trained)
    checks = [
        (
            "rows",
            bool(other_rows),
            f"{', '.join(other_rows)}{example}" if other_rows else f"{len(ids)} rows",
        ),
        ("trained tokens", masked, f"{sum(own.trained)} here, {sum(trl.trained)} in TRL"),
        *step_checks(own, trl, ROUNDING_GAP[fit.cfg.precision], follows=bool(warmup)),
    ]
    settings, differs = changed_settings(fit, cfg), any(check[1] for check in checks)
    return [("settings", bool(settings) and differs, "; ".join(settings) or "equal"), *checks]


def changed_settings(fit: Fit[Any, Any], cfg: Parity) -> list[str]:
    """Return the settings of TRL's side that `parity` changes."""
    arguments = vars(fit.args) | plain_trl.trl_arguments(fit.cfg, 0)
    changes = {name: (arguments[name], value) for name, value in cfg.trl.items()}
    changes |= (
        {"eos_token": (fit.contract.tokenizer.eos_token, cfg.eos_token)} if cfg.eos_token else {}
    )
    changes |= {"the chat template": ("the run's", cfg.template)} if cfg.template else {}
    return [
        f"{name} is {here} here, and {there} in TRL"
        for name, (here, there) in changes.items()
        if here != there
    ]


def compare_rows(
    own: TokenRows, trl: TokenRows, tokenizer: PreTrainedTokenizerBase, every_turn: bool | None
) -> tuple[Counter[str], str]:
    """Return the number of rows by difference, and a description of the first that is not by design."""
    differences, example = Counter({MISSING: len(own) - len(trl)}) - Counter(), ""
    for position, sequences in trl.items():
        reasons = set[str]()
        for pair in zip(own[position], sequences, strict=True):
            reasons |= (new := find_differences(*pair, tokenizer, every_turn))
            if not example and not new <= BY_DESIGN:
                example = f"; row {position + 1}, {describe_first(*pair, tokenizer)}"
        differences.update(reasons)
    return differences, example


def find_differences(
    own: Tokens, trl: Tokens, tokenizer: PreTrainedTokenizerBase, all_turns: bool | None
) -> set[str]:
    """Return the differences of a sequence. `all_turns`: whether TRL trains the assistant's turns; None for pairs."""
    (ids, marks), (trl_ids, trl_marks), end = own, trl, str(tokenizer.eos_token)
    text, trl_text, same_ids = (
        tokenizer.decode(ids),
        tokenizer.decode(trl_ids),
        trl_ids[: len(ids)] == ids,
    )
    if not same_ids:  # a template may trim an answer's text, but not its sampled tokens
        answer = tokenizer.decode(ids[marks.index(True) :])
        text = (
            text.removesuffix(answer)
            + answer.removesuffix(end).strip()
            + end * answer.endswith(end)
        )
    differences, rest = set() if same_ids else {SAMPLED}, trl_text.removeprefix(text)
    if rest.startswith(end) and not text.endswith(end):
        differences, rest = differences | {TRUNCATED}, rest.removeprefix(end)
    if rest.strip() or not trl_text.startswith(text) or not (same_ids or all_turns is None):
        return {IDS}
    if same_ids and marks != trl_marks[: len(ids)]:
        differences.add(
            SOME_TURNS if all_turns and all(map(operator.le, marks, trl_marks)) else MASK
        )
    return differences | ({TAIL} if rest else set())


def describe_first(own: Tokens, trl: Tokens, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe the first token in which two sequences differ, with the text before it."""
    decode, sides = tokenizer.decode, zip_longest(zip(*own, strict=True), zip(*trl, strict=True))
    place, tokens = next((i, pair) for i, pair in enumerate(sides) if pair[0] != pair[1])
    words = [
        f"{decode([t[0]])!r}{'' if t[1] else ' (not trained)'}" if t else "the end" for t in tokens
    ]
    return f"token {place + 1}, after {decode(own[0][:place])[-30:]!r}: {words[0]} here, {words[1]} in TRL"


def design_notes(fit: Fit[Any, Any], differences: Counter[str], warmup: int) -> list[str]:
    """Return what Plumbline does otherwise than TRL in this configuration, and does on both sides here."""
    unit, left_out = fit.cfg.objective.unit, fit.schedule.left_out
    notes = [f"{n} {unit}: {reason}." for reason, n in differences.items() if reason in BY_DESIGN]
    notes += [
        f"{n} {unit} are dropped, {reason}. TRL cuts or drops them."
        for reason, n in fit.rows.dropped.items()
    ]
    if left_out:
        waiting = f"{left_out} {unit} that fill no batch wait for the next epoch"
        notes.append(f"{waiting}. TRL makes a smaller batch of them.")
    if warmup:
        notes.append(
            f"the warm-up takes {warmup} steps and starts above 0. TRL's starts at 0, and used our rates."
        )
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


def step_checks(own: FirstSteps, trl: FirstSteps, tolerance: float, follows: bool) -> list[Check]:
    """Return checks of rates and losses, and the largest difference of a weight. `follows`: TRL used our rates."""
    steps = [*zip(own.figures, trl.figures, strict=True)]
    rates = [
        i for i, (a, b) in enumerate(steps, 1) if not math.isclose(a[RATE], b[RATE], rel_tol=1e-6)
    ]
    measured = f"TRL's differs from step {rates[0]}" if rates else "equal"
    checks = [("learning rate", bool(rates) and not follows, measured)]
    # A gradient norm has more digits before the point than a loss, and is a sum over all weights.
    for title, name, allowed in (
        ("loss", "loss", tolerance),
        ("gradient norm", "grad_norm", 10 * tolerance),
    ):
        gaps = [abs(a[name] - b[name]) / max(1.0, abs(a[name])) for a, b in steps]
        worst, step = max((gap, step) for step, gap in enumerate(gaps, 1))
        checks.append(
            (
                title,
                worst > allowed,
                f"{worst:.1e} apart in step {step}, at most {allowed:g} allowed",
            )
        )
    weights = {
        name: float((weight - trl.weights[name]).abs().max())
        for name, weight in own.weights.items()
    }
    largest = max(weights, key=weights.__getitem__)
    return [*checks, ("weights", False, f"at most {weights[largest]:.1e} apart, in {largest}")]
