"""What a type cannot say of a configuration, refused before anything is built."""

import os
from importlib.util import find_spec
from pathlib import Path

from stages.config import trl_arguments
from stages.config.choices import Adapter, ExportFormat, ModelStage, Sharding, Stage
from stages.config.errors import UserError, one_of
from stages.config.schema import DEFAULT_SHARES, DPO, SFT, SPLIT_OF_GROUP, Config, Export, Launch

LABELERS = ("verifier", "dataset")
SAMPLERS = ("hf",)
SOURCE_CHECKS = ("label", "number")
TRACKERS = ("wandb", "trackio", "none")
TEMPLATES = ("auto", "own", "chatml", "llama3", "gemma", "zephyr", "tulu", "plain", "file")
POSITIVE = {
    "sft": ("learning_rate", "epochs", "batch_size", "max_length"),
    "dpo": ("learning_rate", "epochs", "batch_size", "max_length", "beta"),
    "sample": ("candidates_per_prompt", "max_new_tokens", "top_p"),
    "answer": ("max_new_tokens",),
    "pairs": ("max_per_prompt",),
    "eval": ("bootstrap_samples", "likelihood_prompts"),
    "chat": ("max_new_tokens",),
}
RUN_SOMEWHERE = ("sft", "sample", "reference", "dpo", "answer", "eval", "chat")


def refuse(cfg: Config) -> None:
    """Raise UserError for the first setting that cannot work."""
    numbers(cfg)
    one_of("label.labeler", [cfg.label.labeler], LABELERS)
    one_of("sample.sampler", [cfg.sample.sampler], SAMPLERS)
    one_of("tracker.name", [cfg.tracker.name], TRACKERS)
    one_of("sft.template.kind", [cfg.sft.template.kind], TEMPLATES)
    given(cfg)
    labelled(cfg)
    launched(cfg.launch)
    adapters(cfg)
    for name, block in (("sft", cfg.sft), ("dpo", cfg.dpo)):
        trl_arguments.refuse(name, block)
    if cfg.stage is Stage.export and cfg.export.format is ExportFormat.hub:
        pushed(cfg.export)


def numbers(cfg: Config) -> None:
    """Counts, shares and seeds."""
    at_least(1e-12, {"rounds": cfg.rounds}, "positive")
    for name, keys in POSITIVE.items():
        block = vars(cfg)[name]
        at_least(1e-12, {f"{name}.{key}": vars(block)[key] for key in keys}, "positive")
    for name in RUN_SOMEWHERE:
        runtime = dict(vars(vars(cfg)[name].runtime))
        one_of(f"{name}.runtime.device", [runtime.pop("device")], ("auto", "cpu", "cuda"))
        counts = {f"{name}.runtime.{key}": value for key, value in runtime.items() if key != "loader_workers"}
        at_least(1, {key: n for key, n in counts.items() if type(n) is int}, "at least 1")
    for key, share in {
        "sample.top_p": cfg.sample.top_p,
        "eval.confidence": cfg.eval.confidence,
        "data.max_bad": cfg.data.max_bad,
        "sft.max_dropped": cfg.sft.max_dropped,
        "dpo.max_dropped": cfg.dpo.max_dropped,
        "label.max_failed": cfg.label.max_failed,
        "pairs.min_score": cfg.pairs.min_score,
        "pairs.validation_fraction": cfg.pairs.validation_fraction,
    }.items():
        if not 0 <= share <= 1:
            raise UserError(f"{key} is a share between 0 and 1, got {share}.")
    if cfg.eval.confidence in (0, 1):
        raise UserError(f"eval.confidence={cfg.eval.confidence:g} has no interval: 0.95 is usual.")
    if cfg.sample.prompts is not None:
        at_least(1, {"sample.prompts": cfg.sample.prompts}, "at least 1")
    if not cfg.sample.temperatures or min(cfg.sample.temperatures) < 0:
        raise UserError(f"sample.temperatures needs numbers of at least 0, got {cfg.sample.temperatures}.")
    at_least(0, {"chat.temperature": cfg.chat.temperature}, "at least 0")
    if cfg.seed in cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError(f"seeds={cfg.seeds} come beside seed={cfg.seed}: each once.")


def given(cfg: Config) -> None:
    """What a run starts from: model, data, labels."""
    if not cfg.data.sources and not any(vars(cfg.data.tasks)[group] for group in SPLIT_OF_GROUP):
        raise UserError("data has neither tasks nor sources. Name a file: 'data.sources=[{path: FILE}]'.")
    if cfg.label.labeler == "dataset" and not cfg.label.path:
        raise UserError("label=dataset needs label.path: a preference file, folder or hub dataset.")
    if cfg.label.labeler == "dataset" and cfg.rounds > 1:
        raise UserError(
            f"label=dataset labels nothing new, so rounds={cfg.rounds} would train on the same pairs again."
        )
    if cfg.model.path and cfg.model.random_init:
        raise UserError(
            f"model.path={cfg.model.path} and model.random_init exclude each other: set one of them to null."
        )
    if cfg.stage in (Stage.answer, Stage.eval, Stage.report) and not tests(cfg):
        raise UserError(
            f"stage={cfg.stage} asks {cfg.answer.split} prompts that have checks, and data.tasks makes none. "
            "Raise data.tasks.test, or stop at stage=dpo."
        )


def tests(cfg: Config) -> int:
    """How many prompts with checks the answers' split will have."""
    split = cfg.answer.split
    groups = [group for group, its in SPLIT_OF_GROUP.items() if its == split and group != "rephrased"]
    sources = [s for s in cfg.data.sources if s.check and (s.splits or DEFAULT_SHARES).get(split)]
    return sum(vars(cfg.data.tasks)[group] for group in groups) + len(sources)


def labelled(cfg: Config) -> None:
    """How answers to a source's prompts are compared: `outside` needs to know, `data.sources` may."""
    names = [Path(s.path).name for s in cfg.outside]
    if len(set(names)) < len(names):
        raise UserError(f"outside names {', '.join(names)}: results are told apart by the file's name. Rename one.")
    checked = {f"data.sources[{i}].check": s.check for i, s in enumerate(cfg.data.sources) if s.check is not None}
    checked |= {f"outside[{i}].check": str(s.check) for i, s in enumerate(cfg.outside)}
    for key, check in checked.items():
        one_of(key, [check], SOURCE_CHECKS)


def launched(cfg: Launch) -> None:
    """How several processes find each other, and what divides a model among them."""
    if cfg.nodes > 1 and not cfg.rendezvous:
        raise UserError(f"launch.nodes={cfg.nodes} needs launch.rendezvous=HOST:PORT: a free port of node 0.")
    if not 0 <= cfg.node_rank < cfg.nodes:
        raise UserError(f"launch.node_rank={cfg.node_rank} is none of {cfg.nodes} nodes, counted from 0.")
    if cfg.sharding is Sharding.zero3 and find_spec("deepspeed") is None:
        raise UserError("launch=zero3 needs DeepSpeed: pip install deepspeed. launch=fsdp needs nothing.")


def adapters(cfg: Config) -> None:
    """What low-rank adapters go on from, and what they need."""
    if cfg.sft.adapter is Adapter.continued:
        raise UserError("sft.adapter=continued: there is nothing before SFT to go on with. Use lora.")
    if cfg.dpo.adapter is Adapter.continued and (cfg.sft.adapter is not Adapter.lora or not cfg.sft.train):
        raise UserError("dpo.adapter=continued goes on with the SFT's adapter, which sft.adapter=lora makes.")
    if cfg.dpo.adapter is Adapter.continued and cfg.rounds > 1:
        raise UserError(
            f"dpo.adapter=continued with rounds={cfg.rounds}: a round starts from merged weights. Use lora."
        )
    for name, block in (("sft", cfg.sft), ("dpo", cfg.dpo)):
        adapter(name, block)


def adapter(name: str, block: SFT | DPO) -> None:
    """What low-rank adapters need."""
    at_least(1, {f"{name}.lora.rank": block.lora.rank, f"{name}.lora.alpha": block.lora.alpha}, "at least 1")
    if block.adapter is not Adapter.qlora:
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{name}.adapter=qlora needs bitsandbytes for 4-bit weights: pip install 'plumbline[qlora]'.")
    if block.runtime.sharding is not Sharding.none:
        raise UserError(f"{name}.adapter=qlora cannot be divided among processes: use launch=ddp, or adapter=lora.")


def pushed(cfg: Export) -> None:
    """What a push needs to be told, before anything is built for it."""
    if not cfg.repo:
        raise UserError("export.format=hub needs export.repo=user/name.")
    if cfg.model is ModelStage.base:
        raise UserError("export.model=base was not made here, so it is not pushed: sft and dpo are.")
    if not os.environ.get("HF_TOKEN"):
        raise UserError("export.format=hub needs a token that may write: set HF_TOKEN in the environment.")


def at_least(low: float, values: dict[str, float], word: str) -> None:
    for key, value in values.items():
        if not value >= low:
            raise UserError(f"{key} must be {word}, got {value}.")
