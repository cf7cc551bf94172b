"""Check what may be said to TRL's trainers, without importing them: losses, batches, and arguments of their own."""

import ast
import contextlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config import trl_values, unread_arguments
from stages.config.blocks.training import DPO, OBJECTIVES, Training
from stages.config.choices import Checkpointing
from stages.config.errors import UserError, suggest
from stages.config.installation import install_command

OF_ANY_DIVERGENCE = (*unread_arguments.DIVERGING, "sft")
# TRL's arguments that a typed key or `runtime` sets, and what to set instead.
SET_ELSEWHERE = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "runtime.micro_batch",
    "gradient_accumulation_steps": "batch_size",
    "max_length": "max_length",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "precision",
    "fp16": "precision",
    "tf32": "precision",
    "use_cpu": "runtime.device",
    "gradient_checkpointing": "runtime.gradient_checkpointing",
    "activation_checkpointing": "runtime.gradient_checkpointing",
    "dataloader_num_workers": "runtime.loader_workers",
    "save_steps": "runtime.save_steps",
    "eval_steps": "evaluations",
}
# What a stage decides itself, or what would break a promise: the contract, the batch, the resume, the reference.
SET_BY_STAGE = set(
    "output_dir report_to logging_steps logging_strategy logging_nan_inf_filter save_strategy save_total_limit "
    "save_only_model eval_strategy eval_on_start per_device_eval_batch_size prediction_loss_only max_steps "
    "load_best_model_at_end resume_from_checkpoint ignore_data_skip auto_find_batch_size push_to_hub disable_tqdm "
    "chat_template_path eos_token pad_token assistant_only_loss completion_only_loss dataset_kwargs dataset_num_proc "
    "padding_free packing_strategy eval_packing truncation_mode shuffle_dataset train_sampling_strategy "
    "remove_unused_columns dataloader_drop_last model_init_kwargs trust_remote_code precompute_ref_log_probs "
    "precompute_ref_batch_size sync_ref_model activation_offloading liger_kernel_config average_tokens_across_devices "
    "enable_jit_checkpoint include_num_input_tokens_seen label_names save_on_each_node".split()
)
# What several processes find each other by, and divide a model by.
SET_BY_LAUNCH = ("fsdp fsdp_config deepspeed ddp_backend local_rank accelerator_config parallelism_config").split()
# torch.compile breaks its graph wherever a batch is laid out, compiles parts of it anew for batches of other lengths,
# and under fp32 has transformers switch TF32 on. On two busy cores, minutes for a model of two layers.
COMPILED = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


def validate_trainer(name: str, block: Training, group: Mapping[str, Any]) -> None:
    """Raise UserError for the first thing that an objective asks of its trainer and that cannot work.

    Args:
        group: `NAME.trainer` as the block's group has it, which nobody typed.
    """
    validate_micro_batch(name, block)
    validate_checkpointing(name, block)
    validate_trainer_keys(name, block)
    validate_kernels(name, block)
    if isinstance(block, DPO):
        validate_losses(block)
    unchanging = {key: [d[key] for d in (argument_defaults(name), group) if key in d] for key in block.trainer}
    unread_arguments.validate_readers(name, block, unchanging)


def validate_checkpointing(name: str, block: Training) -> None:
    if block.runtime.gradient_checkpointing not in [Checkpointing.auto, *block.checkpointings]:
        raise UserError(
            f"{name}.runtime.gradient_checkpointing=selective is for all weights, not adapters, and not under ZeRO-3: "
            "none or full."
        )


def validate_kernels(name: str, block: Training) -> None:
    """Refuse torch.compile, and Liger's kernels where they cannot run."""
    if compile_keys := [key for key in COMPILED if block.trainer.get(key)]:
        raise UserError(
            f"{name}.trainer.{compile_keys[0]}: batches differ in shape, and each is compiled for. Leave it out."
        )
    if block.trainer.get("use_liger_kernel") and (block.runtime.device == "cpu" or find_spec("liger_kernel") is None):
        raise UserError(f"{name}.trainer.use_liger_kernel needs CUDA and {install_command('liger')}.")


def validate_losses(cfg: DPO) -> None:
    """Refuse what TRL's losses cannot do, before anything is built for them."""
    if not cfg.loss_type:
        raise UserError("dpo.loss_type names no loss: dpo.loss_type=[sigmoid] is the usual one.")
    if cfg.loss_weights is not None and len(cfg.loss_weights) != len(cfg.loss_type):
        raise UserError(
            f"dpo.loss_weights has {len(cfg.loss_weights)} numbers, dpo.loss_type {len(cfg.loss_type)} losses: set "
            "dpo.loss_weights=null to weigh them alike."
        )
    if cfg.loss_weights is not None and not any(cfg.loss_weights):
        raise UserError(
            f"dpo.loss_weights={cfg.loss_weights} weigh every loss 0, so nothing is learnt: dpo.loss_weights=null "
            "weighs them alike."
        )
    divergence = cfg.trainer.get("f_divergence_type", "reverse_kl")
    if divergence != "reverse_kl" and (without := [loss for loss in cfg.loss_type if loss not in OF_ANY_DIVERGENCE]):
        raise UserError(
            f"dpo.trainer.f_divergence_type={divergence} is for the losses {', '.join(OF_ANY_DIVERGENCE)}, not "
            f"{without[0]}."
        )
    if "exo_pair" in cfg.loss_type and not cfg.trainer.get("label_smoothing"):
        raise UserError("dpo.loss_type=[exo_pair] needs dpo.trainer.label_smoothing (arXiv:2402.00856 uses 1e-3).")
    if cfg.trainer.get("use_weighting") and {"aot", "aot_unpaired", "sft"} & set(cfg.loss_type):
        raise UserError(
            "dpo.trainer.use_weighting weighs pairs, which aot, aot_unpaired and sft losses do not keep apart."
        )


def validate_micro_batch(name: str, block: Training) -> None:
    """Every process must have as many rows of a step as the others, in whole micro-batches if their size is given."""
    runtime, key = block.runtime, f"{name}.runtime.micro_batch"
    if runtime.micro_batch != "auto" and type(runtime.micro_batch) is not int:
        raise UserError(f"{key}={runtime.micro_batch}: a number of rows, or auto.")
    if runtime.rows is None and block.by_micro_batch:
        raise UserError(f"{key}=auto: what is asked of {name} depends on the rows of a micro-batch. Set a number.")
    if runtime.rows and runtime.token_budget is not None:
        raise UserError(f"{name}.runtime.token_budget={runtime.token_budget} is for {key}=auto, not {runtime.rows}.")
    if block.batch_size % ((runtime.rows or 1) * runtime.world_size):
        rows = f"{key}={runtime.rows} × " if runtime.rows else ""
        raise UserError(
            f"{name}.batch_size={block.batch_size} is not a multiple of {rows}{runtime.world_size} processes: every "
            "optimizer step must see exactly batch_size rows."
        )


def validate_trainer_keys(name: str, block: Training) -> None:
    """`trainer:` takes TRL's own argument names but none that is set elsewhere, with values that it can use."""
    types = argument_types(name) if block.trainer else {}
    elsewhere = SET_ELSEWHERE | OBJECTIVES[name].typed
    for key in block.trainer:
        if key in SET_BY_STAGE:
            raise UserError(f"{name}.trainer.{key}: the {name} stage sets it itself; leave it out.")
        if key in SET_BY_LAUNCH:
            raise UserError(f"{name}.trainer.{key}: launch=ddp, fsdp or zero3 sets it; leave it out.")
        if key in elsewhere:
            raise UserError(f"{name}.trainer.{key}: set {name}.{elsewhere[key]} instead.")
        if key not in types:
            raise UserError(f"{name}.trainer.{key} is no argument of TRL's trainer.{suggest(key, types)}")
    trl_values.validate_values(f"{name}.trainer", block.trainer, types, enumerations() if block.trainer else {})


def allowed_arguments(name: str) -> set[str]:
    """The arguments that `NAME.trainer` takes."""
    elsewhere = {*SET_BY_STAGE, *SET_BY_LAUNCH, *SET_ELSEWHERE, *OBJECTIVES[name].typed}
    return argument_types(name).keys() - elsewhere


def argument_types(name: str) -> dict[str, str]:
    """Return the types of the fields of an objective's class of TRL, as the source writes them."""
    return {key: ast.unparse(field.annotation) for key, field in argument_fields(name).items()}


def argument_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of those fields, except of those that the source computes."""
    values = {}
    for key, field in argument_fields(name).items():
        if isinstance(field.value, ast.Call):  # of dataclasses.field
            with contextlib.suppress(StopIteration, ValueError):
                values[key] = ast.literal_eval(next(k.value for k in field.value.keywords if k.arg == "default"))
    return values


def argument_fields(name: str) -> dict[str, ast.AnnAssign]:
    """Return the fields of a TRL configuration by name, from its source: an import takes seconds."""
    sources = (
        ("transformers", "training_args.py"),
        ("trl", "trainer/base_config.py"),
        ("trl", f"trainer/{OBJECTIVES[name].trl.removesuffix('Config').lower()}_config.py"),
    )
    lines = [line for source in sources for definition in classes(*source) for line in definition.body]
    fields = [line for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
    return {field.target.id: field for field in fields if isinstance(field.target, ast.Name)}


def enumerations() -> dict[str, list[str]]:
    """The words of every enumeration that the type of an argument of transformers' may name."""
    words = {}
    for file in ("training_args.py", "trainer_utils.py"):
        for definition in classes("transformers", file):
            if [ast.unparse(base) for base in definition.bases] == ["ExplicitEnum"]:
                values = [line.value for line in definition.body if isinstance(line, ast.Assign)]
                words[definition.name] = [str(ast.literal_eval(value)) for value in values]
    return words


@cache
def classes(package: str, file: str) -> list[ast.ClassDef]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    source = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return [definition for definition in source.body if isinstance(definition, ast.ClassDef)]
