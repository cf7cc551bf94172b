"""Refuse typed keys that nothing reads, such as those of an objective that is not trained, or `dpo.lora` without an adapter.

Keys of a group or a recipe are not refused, as another choice may read them."""

from collections.abc import Iterable, Mapping, Sequence

from stages.cli.interpolations import keys_with_value_of
from stages.cli.spelling import is_inside
from stages.config.blocks.draws import Drawing
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.objective import OwnTraining, Training
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.sampling import DrawnCandidates, Sample
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Adapter, Split, Strategy
from stages.config.command_record import Block
from stages.config.commands import COMMANDS
from stages.config.schema import Config, raft_message
from stages.config.stage_table import DRAWING, STAGES, Target
from stages.pipeline.graph import ABSENT_OF_DEMONSTRATIONS, OWN_OF_DEMONSTRATIONS, way_to_stage
from stages.store.node import Node


def stages_by_block() -> dict[str, str]:
    """Return the stage to name for each setting of a stage that a run may lack; inner blocks stand before outer ones."""
    names = {"control_learning_rate": "control"}
    for stage in STAGES.values():
        names |= dict.fromkeys(stage.settings, stage.name)
    return names


STAGE_BY_BLOCK = stages_by_block()
# other messages tell to type these, or other keys imply them
ALLOWED_UNREAD = {("rounds", "1"), ("control", "false"), ("pairs", "all")}


def unread_messages(
    cfg: Config,
    nodes: Mapping[str, Node],
    typed: Mapping[str, str],
    interpolated: Mapping[str, list[str]],
) -> list[str]:
    """Return a message for each typed key that nothing reads. `nodes`: all of the run, or none for a command that needs
    none. `interpolated`: the keys with an interpolation, each with the keys that it names. A run from a file that needs
    no model may have all settings of the run that goes on from there."""
    turned_off = turned_off_keys(cfg)
    read = {*STAGE_BY_BLOCK}
    if nodes and not cfg.needs_no_model:
        read = set[str]().union(*map(read_by_node, nodes.values()))
    messages = list[str]()
    conflict = raft_message(typed)
    if conflict:
        messages.append(conflict)
    for key, value in typed.items():
        if value == "null" or (key, value) in ALLOWED_UNREAD:
            continue
        keys = [key, *keys_with_value_of(key, interpolated)]
        reasons = [unread_reason(each, cfg, turned_off, read) for each in keys]
        if all(reasons):
            messages.append(f"{key}={value}: {reasons[0]}")
    return messages


def unread_reason(
    key: str, cfg: Config, turned_off: Mapping[str, str], read: Iterable[str]
) -> str | None:
    """Return why nothing reads a key, and the way out; None if something does."""
    block = block_around(key, STAGE_BY_BLOCK)
    turned_off_block = block_around(key, turned_off)
    if turned_off_block:
        return f"{turned_off[turned_off_block]}, or leave the key out."
    if block and not is_read(key, [name for name in read if is_inside(name, block)]):
        way_out = way_to_stage(cfg, STAGE_BY_BLOCK[block])
        return f"nothing reads it. {way_out} Or leave the key out."
    return None


def block_around(key: str, blocks: Iterable[str]) -> str | None:
    """Return the first of these blocks that is the key or has it, or None."""
    return next((block for block in blocks if is_inside(key, block)), None)


def is_read(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of these settings, or stands in one, or one stands in it."""
    return any(is_inside(key, name) or is_inside(name, key) for name in names)


def read_by_node(node: Node) -> set[str]:
    """Return the blocks and keys that a node reads."""
    match node.config:
        case DrawnCandidates(split=Split.sft) as sample:
            not_shared = {*OWN_OF_DEMONSTRATIONS, *ABSENT_OF_DEMONSTRATIONS}
            return {f"sample.{key}" for key in vars(sample).keys() - not_shared}
        case Sample() as sample:
            return {f"sample.{key}" for key in vars(sample)}
        case Drawing(block=block, scorer=scorer, rate_key=rate_key, control=control):
            unlabelled = vars(scorer).keys() - {"audit", "known"}  # both are of a pool
            read = {block, *(f"label.{key}" for key in unlabelled)}
            return read | {"control", rate_key} if control else read
        case Training(block="dpo", rate_key=rate_key):
            return {*STAGES[Target.dpo].settings, rate_key}
        case Training(block=block):
            return {block}
        case Label(block=block) | Pairs(key=block):
            return {block}
        case Model(key=key):
            return {key.partition("[")[0]}
    selects_for_control = "pairs" in node.inputs and node.stage == "select"
    return set() if selects_for_control else {node.stage, *STAGES[node.stage].settings}


def turned_off_keys(cfg: Config) -> dict[str, str]:
    """Return the keys that another key turns off, each with the reason and the way out."""
    reasons = dict[str, str]()
    for name in OBJECTIVES:
        adapter = getattr(vars(cfg)[name], "adapter", Adapter.lora)
        if adapter not in (Adapter.lora, Adapter.qlora):
            reason = f"{name}.adapter={adapter} trains none. Add {name}.adapter=lora"
            reasons[f"{name}.lora"] = reason
    if cfg.label.prefers:
        reason = f"{cfg.label.option} gives no scores. Use another labeler"
        reasons |= dict.fromkeys(("pairs.min_score", "unpaired.threshold"), reason)
    for name in OBJECTIVES:
        training = vars(cfg)[name]
        if not isinstance(training, OwnTraining):
            continue
        if name in DRAWING and name not in cfg.objectives:
            # a control of draws reads the other keys
            reasons[f"{name}.own"] = f"nothing in this run calls it. Add align={name}"
        reasons |= {f"{name}.{key}": reason for key, reason in training.turned_off_by_own.items()}
    if cfg.pairs.strategy is Strategy.best_worst:
        reason = "pairs=best_worst makes one pair of a prompt. Add pairs=all"
        reasons["pairs.max_per_prompt"] = reason
    if not cfg.answer.samples:
        reasons["answer.temperature"] = "nothing is drawn. Add answer.samples=8"
    for name, block in cfg.drawing.items():
        # a control reads the keys of its baseline
        if not cfg.controls:
            reasons |= {f"{name}.{key}": reason for key, reason in block.turned_off.items()}
    for name, further in vars(cfg).items():
        if isinstance(further, Block):
            reasons |= {f"{name}.{key}": reason for key, reason in further.turned_off.items()}
    of_rows = "it is of rows of files. Add data.sources=[{path: FILE}]"
    if not (cfg.data.sources or cfg.outside or cfg.eval.judged.source):
        reasons["data.form"] = of_rows
    if not cfg.data.sources:
        reasons["data.audit"] = of_rows
    read_by_command = COMMANDS[cfg.stage].settings if cfg.stage in COMMANDS else ()
    return {key: reason for key, reason in reasons.items() if key not in read_by_command}
