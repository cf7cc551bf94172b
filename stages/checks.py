"""What a type cannot say of a configuration, refused before anything is built."""

import ast
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config import (
    DEFAULT_SHARES,
    DPO,
    SFT,
    SPLIT_OF_GROUP,
    Adapter,
    Config,
    Export,
    ExportFormat,
    ModelStage,
    Sharding,
    Stage,
    TrainRuntime,
)
from stages.errors import UserError, nearest

LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()
LABELERS = ("verifier", "dataset")
SAMPLERS = ("hf",)
SOURCE_CHECKS = ("label", "number")
TRACKERS = ("wandb", "none")
TEMPLATES = ("auto", "own", "chatml", "llama3", "gemma", "zephyr", "tulu", "plain", "file")

# TRL's arguments that a typed key or `runtime` sets, and what to set instead.
SET_ELSEWHERE = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "runtime.micro_batch_size",
    "gradient_accumulation_steps": "batch_size",
    "max_length": "max_length",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "precision",
    "fp16": "precision",
    "use_cpu": "runtime.device",
    "gradient_checkpointing": "runtime.gradient_checkpointing",
    "activation_checkpointing": "runtime.gradient_checkpointing",
    "dataloader_num_workers": "runtime.loader_workers",
    "save_steps": "runtime.save_steps",
    "eval_steps": "evaluations",
}
SET_ELSEWHERE_TOO = {
    "sft": {"packing": "packing"},
    "dpo": {"beta": "beta", "loss_type": "loss_type", "loss_weights": "loss_weights"},
}
# What a stage decides itself, or what would break a promise: the contract, the batch, the resume, the reference.
SET_BY_STAGE = set(
    "output_dir report_to logging_steps logging_strategy logging_nan_inf_filter save_strategy save_total_limit "
    "save_only_model eval_strategy eval_on_start per_device_eval_batch_size prediction_loss_only max_steps "
    "load_best_model_at_end resume_from_checkpoint ignore_data_skip auto_find_batch_size push_to_hub disable_tqdm "
    "chat_template_path eos_token pad_token assistant_only_loss completion_only_loss dataset_kwargs dataset_num_proc "
    "padding_free packing_strategy eval_packing truncation_mode shuffle_dataset train_sampling_strategy "
    "remove_unused_columns dataloader_drop_last model_init_kwargs trust_remote_code precompute_ref_log_probs "
    "precompute_ref_batch_size sync_ref_model activation_offloading".split()
)
# Arguments under which a step depends on its micro-batches: they bring the micro-batch into the fingerprint.
NOT_NEUTRAL = ("router_aux_loss_coef", "disable_dropout", "neftune_noise_alpha")


def refuse(cfg: Config) -> None:
    """Raise UserError for the first setting that cannot work."""
    positive = {
        "sft": ("learning_rate", "epochs", "batch_size", "max_length"),
        "dpo": ("learning_rate", "epochs", "batch_size", "max_length", "beta"),
        "sample": ("candidates_per_prompt", "max_new_tokens", "top_p"),
        "answer": ("max_new_tokens",),
        "pairs": ("max_per_prompt",),
        "eval": ("bootstrap_samples", "likelihood_prompts"),
        "chat": ("max_new_tokens",),
    }
    at_least(1e-12, {"rounds": cfg.rounds}, "positive")
    for name, keys in positive.items():
        block = vars(cfg)[name]
        at_least(1e-12, {f"{name}.{key}": vars(block)[key] for key in keys}, "positive")
    for name in ("sft", "sample", "reference", "dpo", "answer", "eval", "chat"):
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
    labelled(cfg)
    if cfg.seed in cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError(f"seeds={cfg.seeds} come beside seed={cfg.seed}: each once.")
    if not cfg.data.sources and not any(vars(cfg.data.tasks)[group] for group in SPLIT_OF_GROUP):
        raise UserError("data has neither tasks nor sources. Name a file: 'data.sources=[{path: FILE}]'.")
    one_of("label.labeler", [cfg.label.labeler], LABELERS)
    one_of("sample.sampler", [cfg.sample.sampler], SAMPLERS)
    one_of("tracker.name", [cfg.tracker.name], TRACKERS)
    one_of("sft.template.kind", [cfg.sft.template.kind], TEMPLATES)
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
    if cfg.launch.nodes > 1 and not cfg.launch.rendezvous:
        raise UserError(f"launch.nodes={cfg.launch.nodes} needs launch.rendezvous=HOST:PORT: a free port of node 0.")
    if not 0 <= cfg.launch.node_rank < cfg.launch.nodes:
        raise UserError(
            f"launch.node_rank={cfg.launch.node_rank} is none of {cfg.launch.nodes} nodes, counted from 0."
        )
    if cfg.launch.sharding is Sharding.zero3 and find_spec("deepspeed") is None:
        raise UserError("launch=zero3 needs DeepSpeed: pip install deepspeed. launch=fsdp needs nothing.")
    if cfg.sft.adapter is Adapter.continued:
        raise UserError("sft.adapter=continued: there is nothing before SFT to go on with. Use lora.")
    if cfg.dpo.adapter is Adapter.continued and (cfg.sft.adapter is not Adapter.lora or not cfg.sft.train):
        raise UserError("dpo.adapter=continued goes on with the SFT's adapter, which sft.adapter=lora makes.")
    if cfg.dpo.adapter is Adapter.continued and cfg.rounds > 1:
        raise UserError(
            f"dpo.adapter=continued with rounds={cfg.rounds}: a round starts from merged weights. Use lora."
        )
    if cfg.stage is Stage.export and cfg.export.format is ExportFormat.hub:
        pushed(cfg.export)
    losses(cfg.dpo)
    for name, block in (("sft", cfg.sft), ("dpo", cfg.dpo)):
        divisible(name, block.batch_size, block.runtime)
        adapter(name, block)
        trainer_keys(name, block)


def at_least(low: float, values: dict[str, float], word: str) -> None:
    for key, value in values.items():
        if not value >= low:
            raise UserError(f"{key} must be {word}, got {value}.")


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


def pushed(cfg: Export) -> None:
    """What a push needs to be told, before anything is built for it."""
    if not cfg.repo:
        raise UserError("export.format=hub needs export.repo=user/name.")
    if cfg.model is ModelStage.base:
        raise UserError("export.model=base was not made here, so it is not pushed: sft and dpo are.")
    if not os.environ.get("HF_TOKEN"):
        raise UserError("export.format=hub needs a token that may write: set HF_TOKEN in the environment.")


def losses(cfg: DPO) -> None:
    """What TRL's losses cannot do, before anything is built for them."""
    if not cfg.loss_type:
        raise UserError("dpo.loss_type names no loss.")
    one_of("dpo.loss_type", cfg.loss_type, LOSS_TYPES)
    if cfg.loss_weights and len(cfg.loss_weights) != len(cfg.loss_type):
        raise UserError(
            f"dpo.loss_weights has {len(cfg.loss_weights)} numbers, dpo.loss_type {len(cfg.loss_type)} losses: set "
            "dpo.loss_weights=null to weigh them alike."
        )
    if "exo_pair" in cfg.loss_type and not cfg.trainer.get("label_smoothing"):
        raise UserError("dpo.loss_type=[exo_pair] needs dpo.trainer.label_smoothing (arXiv:2402.00856 uses 1e-3).")
    if cfg.trainer.get("use_weighting") and {"aot", "aot_unpaired", "sft"} & set(cfg.loss_type):
        raise UserError(
            "dpo.trainer.use_weighting weighs pairs, which aot, aot_unpaired and sft losses do not keep apart."
        )


def one_of(key: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise UserError(f"{key}={value} is unknown.{nearest(value, known)}")


def divisible(name: str, batch_size: int, runtime: TrainRuntime) -> None:
    """micro-batch × processes × accumulation must be the effective batch, whatever the devices hold."""
    if batch_size % (runtime.micro_batch_size * runtime.world_size):
        raise UserError(
            f"{name}.batch_size={batch_size} is not a multiple of {name}.runtime.micro_batch_size="
            f"{runtime.micro_batch_size} × {runtime.world_size} processes: every optimizer step must see exactly "
            "batch_size rows."
        )


def adapter(name: str, block: SFT | DPO) -> None:
    """What low-rank adapters need."""
    at_least(1, {f"{name}.lora.rank": block.lora.rank, f"{name}.lora.alpha": block.lora.alpha}, "at least 1")
    if block.adapter is not Adapter.qlora:
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{name}.adapter=qlora needs bitsandbytes for 4-bit weights: pip install 'plumbline[qlora]'.")
    if block.runtime.sharding is not Sharding.none:
        raise UserError(f"{name}.adapter=qlora cannot be divided among processes: use launch=ddp, or adapter=lora.")


def trainer_keys(name: str, block: SFT | DPO) -> None:
    """`trainer:` takes TRL's own argument names but none that is set elsewhere, and numbers where TRL does."""
    known = trl_arguments(name) if block.trainer else {}
    elsewhere = SET_ELSEWHERE | SET_ELSEWHERE_TOO[name]
    for key, value in block.trainer.items():
        if key in SET_BY_STAGE:
            raise UserError(f"{name}.trainer.{key}: the {name} stage sets it itself; leave it out.")
        if key in elsewhere:
            raise UserError(f"{name}.trainer.{key}: set {name}.{elsewhere[key]} instead.")
        if key not in known:
            raise UserError(f"{name}.trainer.{key} is no argument of TRL's trainer.{nearest(key, known)}")
        if isinstance(value, str) and {part.strip() for part in known[key].split("|")} <= {
            "float",
            "int",
            "bool",
            "None",
        }:
            raise UserError(f"{name}.trainer.{key}={value} must be {known[key]}.")


def trl_arguments(name: str) -> dict[str, str]:
    """The fields of TRL's SFTConfig or DPOConfig with their types, from its source: an import takes seconds."""
    found = {}
    for package, file in (
        ("transformers", "training_args.py"),
        ("trl", "trainer/base_config.py"),
        ("trl", f"trainer/{name}_config.py"),
    ):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is not installed"
        source = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        for definition in source.body:
            if isinstance(definition, ast.ClassDef):
                for field in definition.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        found[field.target.id] = ast.unparse(field.annotation)
    return found


def not_neutral(block: Any) -> dict[str, Any]:
    """What `runtime` sets and yet changes this node's result, so that it enters the fingerprint.

    `aot` losses sort inside a micro-batch (arXiv:2406.05882), dropout and noise are drawn per micro-batch, and a
    mixture-of-experts' auxiliary loss is a mean of micro-batch means.
    """
    if not isinstance(block, SFT | DPO):
        return {}
    aot = isinstance(block, DPO) and {"aot", "aot_unpaired"} & set(block.loss_type)
    if aot or set(NOT_NEUTRAL) & set(block.trainer):
        return {"micro_batch_size": block.runtime.micro_batch_size * block.runtime.world_size}
    return {}
