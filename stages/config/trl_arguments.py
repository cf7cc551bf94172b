"""Check the settings that go to TRL's trainers: losses, batches and TRL's own arguments. TRL is not imported."""

import ast
import contextlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config import trl_values, unread_arguments
from stages.config.blocks.training import DPO, OBJECTIVES, Training
from stages.config.choices import SIMPO, Checkpointing
from stages.config.errors import UserError, suggest
from stages.config.installation import install_command

OF_ANY_DIVERGENCE = (*unread_arguments.DIVERGING, "sft")
# TRL's arguments that another key of the block sets, with that key.
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
# Arguments that the stage sets, or that would break the tokenizer contract, the batch, the resume or the reference.
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
# Arguments by which several processes find each other and divide a model.
SET_BY_LAUNCH = ("fsdp fsdp_config deepspeed ddp_backend local_rank accelerator_config parallelism_config").split()
# torch.compile is refused: batches differ in length, so it compiles again and again. On two busy cores, that takes
# minutes for a model of two layers. Under fp32, transformers would also turn TF32 on.
COMPILED = ("torch_compile", "torch_compile_backend", "torch_compile_mode")


def validate_trainer(name: str, block: Training, group: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting of an objective that its trainer cannot use.

    Args:
        group: the defaults of `NAME.trainer` in `conf/`, which the user did not type."""
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
            f"{name}.runtime.gradient_checkpointing=selective: this does not work with adapters or under ZeRO-3. Set "
            "none or full."
        )


def validate_kernels(name: str, block: Training) -> None:
    """Refuse torch.compile, and Liger's kernels if they cannot run."""
    if compile_keys := [key for key in COMPILED if block.trainer.get(key)]:
        key = f"{name}.trainer.{compile_keys[0]}"
        raise UserError(f"{key}: torch would compile again for batches of another shape. Leave this argument out.")
    if block.trainer.get("use_liger_kernel") and (block.runtime.device == "cpu" or find_spec("liger_kernel") is None):
        raise UserError(f"{name}.trainer.use_liger_kernel: this needs a CUDA device and {install_command('liger')}.")


def validate_losses(cfg: DPO) -> None:
    """Refuse combinations of DPO's losses, weights and divergences that TRL does not support."""
    if not cfg.loss_type:
        raise UserError("dpo.loss_type=[]: the list is empty. Type dpo.loss_type=[sigmoid] for the standard loss.")
    if cfg.loss_weights is not None and len(cfg.loss_weights) != len(cfg.loss_type):
        raise UserError(
            f"dpo.loss_weights has {len(cfg.loss_weights)} numbers, but dpo.loss_type has {len(cfg.loss_type)} losses."
            " Type dpo.loss_weights=null for equal weights."
        )
    if cfg.loss_weights is not None and not any(cfg.loss_weights):
        raise UserError(
            f"dpo.loss_weights={cfg.loss_weights}: all weights are 0, so nothing is learnt. Type "
            "dpo.loss_weights=null for equal weights."
        )
    if SIMPO in cfg.loss_type and len(cfg.loss_type) > 1:
        raise UserError(
            f"dpo.loss_type={cfg.loss_type}: simpo needs no reference, and the other losses do. Type dpo.loss_type="
            "[simpo] dpo.loss_weights=null, or leave simpo out."
        )
    if cfg.reference_free and (unread := {"use_weighting", "router_aux_loss_coef"}.intersection(cfg.trainer)):
        raise UserError(f"dpo.trainer.{min(unread)}: the loss simpo does not read this. Leave it out.")
    divergence = cfg.trainer.get("f_divergence_type", "reverse_kl")
    if divergence != "reverse_kl" and (without := [loss for loss in cfg.loss_type if loss not in OF_ANY_DIVERGENCE]):
        raise UserError(
            f"dpo.trainer.f_divergence_type={divergence}: the loss {without[0]} does not support it. "
            f"Set dpo.loss_type to {', '.join(OF_ANY_DIVERGENCE)}."
        )
    if "exo_pair" in cfg.loss_type and not cfg.trainer.get("label_smoothing"):
        raise UserError("dpo.loss_type=[exo_pair]: add dpo.trainer.label_smoothing=0.001 (arXiv:2402.00856).")
    if cfg.trainer.get("use_weighting") and {"aot", "aot_unpaired", "sft"} & set(cfg.loss_type):
        raise UserError(
            "dpo.trainer.use_weighting: the losses aot, aot_unpaired and sft cannot weight single pairs. Leave one of "
            "the two out."
        )


def validate_micro_batch(name: str, block: Training) -> None:
    """Check that the rows of a step divide evenly among the processes, and into micro-batches of the given size."""
    runtime, key = block.runtime, f"{name}.runtime.micro_batch"
    if runtime.micro_batch != "auto" and type(runtime.micro_batch) is not int:
        raise UserError(f"{key}={runtime.micro_batch}: the value must be a number of rows, or auto.")
    if runtime.rows is None and block.by_micro_batch:
        raise UserError(f"{key}=auto: with these settings the size of a micro-batch changes the result. Set a number.")
    if runtime.rows and runtime.token_budget is not None:
        budget = f"{name}.runtime.token_budget={runtime.token_budget}"
        raise UserError(f"{budget}: a token budget needs {key}=auto, but it is {runtime.rows}. Change one of the two.")
    if block.batch_size % ((runtime.rows or 1) * runtime.world_size):
        rows = f"{key}={runtime.rows} × " if runtime.rows else ""
        raise UserError(
            f"{name}.batch_size={block.batch_size}: this is not a multiple of {rows}{runtime.world_size} processes, "
            f"so they cannot share its rows evenly. Set {name}.batch_size to a multiple."
        )


def validate_trainer_keys(name: str, block: Training) -> None:
    """Check that the keys of `trainer` are arguments of TRL, that no other setting sets them, and that they fit."""
    types = argument_types(name) if block.trainer else {}
    elsewhere = SET_ELSEWHERE | OBJECTIVES[name].typed
    for key in block.trainer:
        if key in SET_BY_STAGE:
            raise UserError(f"{name}.trainer.{key}: only the {name} stage sets this argument. Leave it out.")
        if key in SET_BY_LAUNCH:
            raise UserError(f"{name}.trainer.{key}: launch=ddp, fsdp or zero3 sets this argument. Leave it out.")
        if key in elsewhere:
            raise UserError(f"{name}.trainer.{key}: another setting does this. Set {name}.{elsewhere[key]} instead.")
        if key not in types:
            raise UserError(f"{name}.trainer.{key}: TRL's trainer does not have this argument.{suggest(key, types)}")
    trl_values.validate_values(f"{name}.trainer", block.trainer, types, enumerations() if block.trainer else {})


def allowed_arguments(name: str) -> set[str]:
    """Return the names of all arguments that `NAME.trainer` accepts."""
    elsewhere = {*SET_BY_STAGE, *SET_BY_LAUNCH, *SET_ELSEWHERE, *OBJECTIVES[name].typed}
    return argument_types(name).keys() - elsewhere


def argument_types(name: str) -> dict[str, str]:
    """Return the types of all arguments of an objective's TRL configuration, as its source writes them."""
    return {key: ast.unparse(field.annotation) for key, field in argument_fields(name).items()}


def argument_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of an objective's TRL configuration, without those that the source computes."""
    values = {}
    for key, field in argument_fields(name).items():
        if isinstance(field.value, ast.Call):  # a call of dataclasses.field
            with contextlib.suppress(StopIteration, ValueError):
                values[key] = ast.literal_eval(next(k.value for k in field.value.keywords if k.arg == "default"))
    return values


def argument_fields(name: str) -> dict[str, ast.AnnAssign]:
    """Return the fields of a TRL configuration, or of its `model`, from the source: an import takes seconds."""
    own = name if name == "model" else OBJECTIVES[name].trl.removesuffix("Config").lower()
    sources = [("trl", f"trainer/{own}_config.py")] if own else []
    if name != "model":
        base = [("trl", "trainer/base_config.py")] if own else []
        sources = [("transformers", "training_args.py"), *base, *sources]
    lines = [line for source in sources for definition in classes(*source) for line in definition.body]
    fields = [line for line in lines if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
    return {field.target.id: field for field in fields if isinstance(field.target, ast.Name)}


def enumerations() -> dict[str, list[str]]:
    """Return the words of every enumeration in transformers that can be the type of an argument."""
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
