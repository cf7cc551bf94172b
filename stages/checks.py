"""What a type cannot say of a configuration, refused before anything is built."""

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config import DPO, SFT, Config, TrainRuntime
from stages.errors import UserError, nearest

LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()
LABELERS = ("verifier", "dataset")
SAMPLERS = ("hf",)
TRACKERS = ("wandb", "none")
TEMPLATES = ("auto", "own", "chatml", "plain", "file")

# TRL's arguments that a typed key, `runtime` or the stage itself sets, and what to set instead.
SET_ELSEWHERE = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size and runtime.micro_batch_size",
    "per_device_eval_batch_size": "runtime.micro_batch_size",
    "gradient_accumulation_steps": "batch_size and runtime.micro_batch_size",
    "max_length": "max_length",
    "packing": "packing",
    "beta": "beta",
    "loss_type": "loss_type",
    "loss_weights": "loss_weights",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "precision",
    "fp16": "precision",
    "use_cpu": "runtime.device",
    "gradient_checkpointing": "runtime.gradient_checkpointing",
    "dataloader_num_workers": "runtime.loader_workers",
    "save_steps": "runtime.save_steps",
    "eval_steps": "evaluations",
}
SET_BY_STAGE = set(
    "output_dir report_to logging_steps logging_strategy save_strategy eval_strategy save_total_limit max_steps "
    "load_best_model_at_end precompute_ref_log_probs assistant_only_loss completion_only_loss dataset_kwargs "
    "resume_from_checkpoint disable_tqdm push_to_hub padding_free train_sampling_strategy model_init_kwargs "
    "remove_unused_columns dataloader_drop_last truncation_mode shuffle_dataset packing_strategy eval_packing".split()
)


def refuse(cfg: Config) -> None:
    """Raise UserError for the first setting that cannot work."""
    for key, value in {
        "sft.learning_rate": cfg.sft.learning_rate,
        "dpo.learning_rate": cfg.dpo.learning_rate,
        "dpo.beta": cfg.dpo.beta,
        "sft.epochs": cfg.sft.epochs,
        "dpo.epochs": cfg.dpo.epochs,
        "rounds": cfg.rounds,
        "sample.candidates_per_prompt": cfg.sample.candidates_per_prompt,
        "sample.max_new_tokens": cfg.sample.max_new_tokens,
        "answer.max_new_tokens": cfg.answer.max_new_tokens,
        "pairs.max_per_prompt": cfg.pairs.max_per_prompt,
    }.items():
        if not value > 0:
            raise UserError(f"{key} must be positive, got {value}.")
    for key, share in {
        "sample.top_p": cfg.sample.top_p,
        "eval.confidence": cfg.eval.confidence,
        "data.max_bad": cfg.data.max_bad,
        "sft.max_dropped": cfg.sft.max_dropped,
        "dpo.max_dropped": cfg.dpo.max_dropped,
        "label.max_failed": cfg.label.max_failed,
        "pairs.validation_fraction": cfg.pairs.validation_fraction,
    }.items():
        if not 0 <= share <= 1:
            raise UserError(f"{key} is a share between 0 and 1, got {share}.")
    if not cfg.sample.temperatures or min(cfg.sample.temperatures) < 0:
        raise UserError(f"sample.temperatures needs numbers of at least 0, got {cfg.sample.temperatures}.")
    tasks = cfg.data.tasks
    generated = (tasks.sft, tasks.preference, tasks.validation, tasks.test, tasks.unseen_phrasings, tasks.unseen_tasks)
    if not cfg.data.sources and not any(generated):
        raise UserError("data has neither tasks nor sources. Name a file: 'data.sources=[{path: FILE}]'.")
    one_of("label.labeler", [cfg.label.labeler], LABELERS)
    one_of("sample.sampler", [cfg.sample.sampler], SAMPLERS)
    one_of("tracker.name", [cfg.tracker.name], TRACKERS)
    one_of("sft.template.kind", [cfg.sft.template.kind], TEMPLATES)
    one_of("dpo.loss_type", cfg.dpo.loss_type, LOSS_TYPES)
    if cfg.dpo.loss_weights and len(cfg.dpo.loss_weights) != len(cfg.dpo.loss_type):
        raise UserError(
            f"dpo.loss_weights has {len(cfg.dpo.loss_weights)} numbers, dpo.loss_type {len(cfg.dpo.loss_type)} losses."
        )
    if cfg.label.labeler == "dataset" and not cfg.label.path:
        raise UserError("label=dataset needs label.path: a preference file, folder or hub dataset.")
    if cfg.label.labeler == "dataset" and cfg.rounds > 1:
        raise UserError(
            f"label=dataset labels nothing new, so rounds={cfg.rounds} would train on the same pairs again."
        )
    for name, block in (("sft", cfg.sft), ("dpo", cfg.dpo)):
        divisible(name, block.batch_size, block.runtime)
        trainer_keys(name, block)


def one_of(key: str, values: Iterable[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise UserError(f"{key}={value} is unknown.{nearest(value, known)}")


def divisible(name: str, batch_size: int, runtime: TrainRuntime) -> None:
    """micro-batch × accumulation must be the effective batch, whatever the device holds."""
    if batch_size < 1 or runtime.micro_batch_size < 1 or batch_size % runtime.micro_batch_size:
        raise UserError(
            f"{name}.batch_size={batch_size} is not a multiple of {name}.runtime.micro_batch_size="
            f"{runtime.micro_batch_size}: every optimizer step must see exactly batch_size rows."
        )


def trainer_keys(name: str, block: SFT | DPO) -> None:
    """`trainer:` takes TRL's own argument names, but none that is set elsewhere."""
    if not block.trainer:
        return
    known = trl_arguments(name)
    for key in block.trainer:
        if key in SET_BY_STAGE:
            raise UserError(f"{name}.trainer.{key}: the {name} stage sets it itself; leave it out.")
        if key in SET_ELSEWHERE:
            instead = ", ".join(f"{name}.{part}" for part in SET_ELSEWHERE[key].split(" and "))
            raise UserError(f"{name}.trainer.{key}: set {instead} instead.")
        if key not in known:
            raise UserError(f"{name}.trainer.{key} is no argument of TRL's trainer.{nearest(key, known)}")


def trl_arguments(name: str) -> set[str]:
    """The fields of TRL's SFTConfig or DPOConfig, read from the installed source: importing TRL takes seconds."""
    files = []
    for package, file in (
        ("trl", f"trainer/{name}_config.py"),
        ("trl", "trainer/base_config.py"),
        ("transformers", "training_args.py"),
    ):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is not installed"
        files.append(Path(spec.origin).parent / file)
    return {
        statement.target.id
        for file in files
        for definition in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(definition, ast.ClassDef)
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def not_neutral(block: Any) -> dict[str, Any]:
    """What `runtime` sets and yet changes this node's result, so that it enters the fingerprint.

    `aot` losses sort inside a micro-batch (arXiv:2406.05882), and a mixture-of-experts' auxiliary loss is a mean of
    micro-batch means.
    """
    if isinstance(block, DPO) and {"aot", "aot_unpaired"} & set(block.loss_type):
        return {"micro_batch_size": block.runtime.micro_batch_size}
    if isinstance(block, SFT | DPO) and block.trainer.get("router_aux_loss_coef"):
        return {"micro_batch_size": block.runtime.micro_batch_size}
    return {}
