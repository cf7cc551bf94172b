"""Refuse typed keys that nothing reads, such as `kto.beta` without `align=kto`, or `dpo.lora` without an adapter.

Keys of a group or a recipe are not refused, as another choice may read them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stages.cli.spelling import typed_values
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Model
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.sampling import Drawn, Sample
from stages.config.blocks.training import OBJECTIVES, ScoredGRPO, Training
from stages.config.choices import Adapter, Command, Split, Strategy
from stages.config.errors import UserError
from stages.config.schema import Config, Target
from stages.pipeline.graph import NOT_OF_SELECT, OF_SELECT, way_to_stage, wire_unpinned
from stages.preflight.sources import is_local
from stages.store.node import Node

# The settings of stages that a run may lack, with the stage to name; inner blocks stand before outer ones
STAGES = {"reward.source": "reward", "reward.pairs": "reward", "eval.judged": "versus"}
OF_DPO = ("rounds", "control", "control_pairs")
STAGES |= dict.fromkeys(OF_DPO, "dpo")
STAGES |= {"control_learning_rate": "control"}
STAGES |= {name: name for name in ("select", "sample", "label", "pairs", "unpaired", "reference")}
STAGES |= {name: name for name in ("dpo", "kto", "grpo", "reward", "benchmark", "examine")}
OF_MEMBERS = {"candidates_per_prompt": "n", "temperatures": "temperature", "top_p": "top_p"}
# ways out of other messages, or implied
OFF = {("rounds", "1"), ("control", "false"), ("pairs", "all")}


def refuse_unread(jobs: Sequence[Mapping[str, str]]) -> None:
    """Raise one UserError for the keys that no job reads. `jobs`: `unread_keys` of each; a run is one job."""
    unread = set(jobs[0]).intersection(*jobs)
    messages = [text for key, text in jobs[0].items() if key in unread]
    if messages:
        raise UserError(*messages)


def unread_keys(cfg: Config, nodes: Mapping[str, Node], typed: Sequence[str]) -> dict[str, str]:
    """Return the typed keys that nothing reads, each with the message that refuses it. `nodes`: all of the run, or none
    for a command that needs none."""
    reasons = unread_by_value(cfg)
    read = read_by_run(cfg, nodes) if nodes else {*STAGES}
    unread = dict[str, str]()
    for key, value in typed_values([*typed]).items():
        if value == "null" or (key, value) in OFF:
            continue
        block = next((name for name in STAGES if is_below(key, name)), None)
        inner = next((name for name in reasons if is_below(key, name)), None)
        if inner:
            unread[key] = f"{key}={value}: {reasons[inner]}, or leave the key out."
        elif block and not is_read(key, [name for name in read if is_below(name, block)]):
            way_out = way_to_stage(cfg, STAGES[block])
            unread[key] = f"{key}={value}: nothing reads it. {way_out} Or leave the key out."
    return unread


def is_read(key: str, names: Sequence[str]) -> bool:
    """Return whether a key is one of these settings, or stands in one, or one stands in it."""
    return any(is_below(key, name) or is_below(name, key) for name in names)


def is_below(key: str, block: str) -> bool:
    """Return whether a key is a block or stands in it."""
    return f"{key}.".startswith(f"{block}.")


def read_by_run(cfg: Config, nodes: Mapping[str, Node]) -> set[str]:
    """Return the blocks and keys that a stage of the run reads, also of those behind a file that needs no model."""
    read = set[str]().union(*map(read_by_node, nodes.values()))
    if cfg.without_model:
        whole = replace(cfg, stage=Target.report)
        read |= read_by_run(whole, wire_unpinned(whole))
    return read


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
            reasons[f"{name}.lora"] = (
                f"{name}.adapter={adapter} trains none. Add {name}.adapter=lora"
            )
    if cfg.label.prefers:
        without_scores = f"label={cfg.label.labeler} gives no scores. Use another labeler"
        reasons |= dict.fromkeys(("pairs.min_score", "unpaired.threshold"), without_scores)
    if cfg.pairs.strategy is Strategy.best_worst:
        reasons["pairs.max_per_prompt"] = (
            "pairs=best_worst makes one pair of a prompt. Add pairs=all"
        )
    if not cfg.eval.suites.names:
        reason = "no suite is named. Add eval.suites.names=[refusal]"
        reasons |= dict.fromkeys(("eval.suites.pairs", "eval.suites.seed"), reason)
    if not cfg.data.path:
        reasons["data.file"] = "it says how data.path is read. Add data.path=FILE"
    if not (cfg.data.sources or cfg.outside or cfg.eval.judged.source):
        reasons["data.form"] = "it is of rows of files. Add data.sources=[{path: FILE}]"
    if not cfg.data.sources and cfg.stage != Command.audit:
        reasons["data.audit"] = "it is of rows of files. Add data.sources=[{path: FILE}]"
    hub = {"model": cfg.model.path, "reward.source": cfg.reward.source.path}
    for name, path in (hub | {"label": getattr(cfg.label, "path", None)}).items():
        if not path or is_local(path, f"{name}.path"):
            reason = f"{name}.path={path or 'null'} is not of the hub. Name a hub id there"
            keys = (f"{name}.revision", f"{name}.subset", f"{name}.hub_split")
            reasons |= dict.fromkeys(keys, reason)
    pool = cfg.sample.pool or [] if isinstance(cfg.sample, Drawn) else []
    for key, name in OF_MEMBERS.items():
        if pool and all(member.file or vars(member)[name] is not None for member in pool):
            reasons[f"sample.{key}"] = (
                f"every source of sample.pool has its own {name}. Leave one out"
            )
    return reasons
