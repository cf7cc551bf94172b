"""Refuse typed keys that nothing reads, such as `kto.beta` without `align=kto`, or `dpo.lora` without an adapter.

Keys of a group or a recipe are not refused, as another choice may read them."""

from collections.abc import Iterable, Mapping, Sequence

from stages.cli.spelling import typed_values
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.sampling import Drawn, Sample
from stages.config.blocks.training import OBJECTIVES, ScoredGRPO, Training
from stages.config.choices import Adapter, Command, Split, Strategy
from stages.config.schema import Config
from stages.pipeline.graph import NOT_OF_SELECT, OF_SELECT, way_to_stage
from stages.store.node import Node

# The settings of stages that a run may lack, with the stage to name; inner blocks stand before outer ones
STAGES = {"reward.source": "reward", "reward.pairs": "reward", "eval.judged": "versus"}
OF_DPO = ("rounds", "control", "control_pairs")
STAGES |= dict.fromkeys(OF_DPO, "dpo")
STAGES |= {"control_learning_rate": "control"}
STAGES |= {name: name for name in ("select", "sample", "label", "pairs", "unpaired", "reference")}
STAGES |= {name: name for name in ("dpo", "kto", "grpo", "reward", "benchmark", "examine")}
# ways out of other messages, or implied
OFF = {("rounds", "1"), ("control", "false"), ("pairs", "all")}


def unread_messages(cfg: Config, nodes: Mapping[str, Node], line: Sequence[str]) -> list[str]:
    """Return a message for each typed key that nothing reads. `nodes`: all of the run, or none for a command that needs
    none. A run from a file that needs no model may have all settings of the run that goes on from there."""
    reasons = unread_by_value(cfg)
    read = {*STAGES}
    if nodes and not cfg.needs_no_model:
        read = set[str]().union(*map(read_by_node, nodes.values()))
    messages = list[str]()
    for key, value in typed_values([*line]).items():
        if value == "null" or (key, value) in OFF:
            continue
        block = block_around(key, STAGES)
        turned_off = block_around(key, reasons)
        if turned_off:
            messages.append(f"{key}={value}: {reasons[turned_off]}, or leave the key out.")
        elif block and not is_read(key, [name for name in read if is_below(name, block)]):
            way_out = way_to_stage(cfg, STAGES[block])
            messages.append(f"{key}={value}: nothing reads it. {way_out} Or leave the key out.")
    return messages


def block_around(key: str, blocks: Iterable[str]) -> str | None:
    """Return the first of these blocks that is the key or has it, or None."""
    return next((block for block in blocks if is_below(key, block)), None)


def is_read(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of these settings, or stands in one, or one stands in it."""
    return any(is_below(key, name) or is_below(name, key) for name in names)


def is_below(key: str, block: str) -> bool:
    """Return whether a key is a block or stands in it."""
    return f"{key}.".startswith(f"{block}.")


def read_by_node(node: Node) -> set[str]:
    """Return the blocks and keys that a node reads."""
    match node.config:
        case Drawn(split=Split.sft) as sample:
            return {f"sample.{key}" for key in vars(sample).keys() - {*OF_SELECT, *NOT_OF_SELECT}}
        case Sample() as sample:
            return {f"sample.{key}" for key in vars(sample)}
        case ScoredGRPO(label=label):
            unlabelled = vars(label).keys() - {"audit", "known"}  # both are of a pool
            return {"grpo", *(f"label.{key}" for key in unlabelled)}
        case Training(block="dpo", rate_key=rate_key):
            return {"dpo", *OF_DPO, rate_key}
        case Training(block=block):
            return {block}
        case Label(block=block) | Pairs(key=block):
            return {block}
        case Model(key=key):
            return {key.partition("[")[0]}
    return {"" if "pairs" in node.inputs and node.stage == "select" else node.stage}


def unread_by_value(cfg: Config) -> dict[str, str]:
    """Return the keys that another key turns off, each with the reason and the way out."""
    reasons = dict[str, str]()
    for name in OBJECTIVES:
        adapter = getattr(vars(cfg)[name], "adapter", Adapter.lora)
        if adapter not in (Adapter.lora, Adapter.qlora):
            reason = f"{name}.adapter={adapter} trains none. Add {name}.adapter=lora"
            reasons[f"{name}.lora"] = reason
    if cfg.label.prefers:
        reason = f"label={cfg.label.labeler} gives no scores. Use another labeler"
        reasons |= dict.fromkeys(("pairs.min_score", "unpaired.threshold"), reason)
    if cfg.pairs.strategy is Strategy.best_worst:
        reason = "pairs=best_worst makes one pair of a prompt. Add pairs=all"
        reasons["pairs.max_per_prompt"] = reason
    if not cfg.eval.suites.names:
        reason = "no suite is named. Add eval.suites.names=[refusal]"
        reasons |= dict.fromkeys(("eval.suites.pairs", "eval.suites.seed"), reason)
    of_rows = "it is of rows of files. Add data.sources=[{path: FILE}]"
    if not (cfg.data.sources or cfg.outside or cfg.eval.judged.source):
        reasons["data.form"] = of_rows
    if not cfg.data.sources and cfg.stage != Command.audit:
        reasons["data.audit"] = of_rows
    return reasons
