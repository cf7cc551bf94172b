"""Check the settings that go to TRL's trainers: losses, batches and TRL's own arguments. TRL is not imported."""

import ast
import contextlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.config import trl_values
from stages.config.blocks.training import DPO, KTO, OBJECTIVES, Training
from stages.config.choices import SIMPO, Checkpointing, Forward
from stages.config.errors import UserError, suggest
from stages.config.installation import install_command, read_beside

TABLES = read_beside(__file__)
READ_BY: dict[str, list[str]] = {name: losses.split() for name, losses in TABLES["read_by_losses"].items()}
OF_ANY_DIVERGENCE = (*READ_BY["f_divergence_type"], "sft")
SET_ELSEWHERE: dict[str, str] = {name: key for key, names in TABLES["set_elsewhere"].items() for name in names.split()}
SET_BY_STAGE = {*TABLES["set_by_stage"].split()}
SET_BY_LAUNCH, COMPILED = TABLES["set_by_launch"].split(), TABLES["compiled"].split()
OF_MARGINS = TABLES["of_margins"].split()
MISTAKES: dict[str, str] = TABLES["mistakes_of_losses"]


def validate_trainer(name: str, block: Training) -> None:
    """Raise UserError for the first setting of an objective that its trainer cannot use."""
    validate_micro_batch(name, block)
    if block.runtime.gradient_checkpointing not in [Checkpointing.auto, *block.checkpointings]:
        problem = "this does not work with adapters or under ZeRO-3"
        raise UserError(f"{name}.runtime.gradient_checkpointing=selective: {problem}. Set none or full.")
    validate_trainer_keys(name, block)
    validate_kernels(name, block)
    if isinstance(block, DPO):
        validate_losses(block)
    if isinstance(block, KTO) and (block.desirable_weight, block.undesirable_weight) == (0, 0):
        raise UserError("kto.desirable_weight=0: both weights are 0, so nothing is learnt. Leave them out.")


def validate_kernels(name: str, block: Training) -> None:
    """Refuse torch.compile, and Liger's kernels if they cannot run."""
    if compile_keys := [key for key in COMPILED if block.trainer.get(key)]:
        key = f"{name}.trainer.{compile_keys[0]}"
        raise UserError(f"{key}: torch would compile again for batches of another shape. Leave this argument out.")
    if block.trainer.get("use_liger_kernel") and (block.runtime.device == "cpu" or find_spec("liger_kernel") is None):
        raise UserError(f"{name}.trainer.use_liger_kernel: this needs a CUDA device and {install_command('liger')}.")


def validate_losses(cfg: DPO) -> None:
    """Refuse combinations of DPO's losses, weights and divergences that TRL does not support."""
    losses, weights, options = cfg.loss_type, cfg.loss_weights, cfg.trainer
    unread = {"use_weighting", "router_aux_loss_coef", "ld_alpha"} & options.keys() if cfg.reference_free else set()
    divergence = options.get("f_divergence_type", "reverse_kl")
    argument = unread_argument(cfg)
    undiverging = [loss for loss in losses if loss not in OF_ANY_DIVERGENCE] if divergence != "reverse_kl" else []
    mistakes = {
        "no loss": not losses,
        "number of weights": weights is not None and len(weights) != len(losses),
        "no weight": weights is not None and not any(weights),
        "simpo and others": SIMPO in losses and len(losses) > 1,
        "unread by simpo": unread,
        "divergence": undiverging,
        "alpha": "f_alpha_divergence_coef" in options and divergence != "alpha_divergence",
        "first difference": cfg.first_difference
        and ({*losses}.difference(OF_MARGINS) or {"ld_alpha", "f_divergence_type"} & options.keys()),
        "unread by losses": argument,
        "exo_pair": "exo_pair" in losses and not options.get("label_smoothing"),
        "weighting": options.get("use_weighting") and {"aot", "aot_unpaired", "hinge", "sft"} & {*losses},
    }
    if mistake := next((name for name, is_made in mistakes.items() if is_made), None):
        numbers = {"losses": losses, "weights": weights, "of_weights": len(weights or ()), "of_losses": len(losses)}
        words = {"argument": argument, "readers": ", ".join(READ_BY.get(str(argument), ()))}
        words |= {"of_margins": ", ".join(OF_MARGINS), "diverging": ", ".join(OF_ANY_DIVERGENCE)}
        words |= {"unread": min(unread, default=""), "divergence": divergence, "loss": "".join(undiverging[:1])}
        raise UserError(MISTAKES[mistake].format(**numbers, **words))


def unread_argument(cfg: DPO) -> str | None:
    """Return the first argument of `dpo.trainer` that no loss with a weight reads; None if there is none."""
    weights = cfg.loss_weights or [1.0] * len(cfg.loss_type)
    losses = {loss for loss, weight in zip(cfg.loss_type, weights, strict=False) if weight}
    changed = [name for name in READ_BY if cfg.trainer.get(name) not in (None, 0, "reverse_kl")]  # TRL's defaults
    return next((name for name in changed if losses.isdisjoint(READ_BY[name])), None)


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
        divisor = (f"{key}={runtime.rows} × " if runtime.rows else "") + f"{runtime.world_size} processes"
        problem = f"this is not a multiple of {divisor}, so they cannot share its rows evenly"
        raise UserError(f"{name}.batch_size={block.batch_size}: {problem}. Set {name}.batch_size to a multiple.")


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
    packed = getattr(block, "packing", True) and getattr(block, "forward", None) is not Forward.padded
    if "neftune_noise_alpha" in block.trainer and packed:
        raise UserError(f"{name}.trainer.neftune_noise_alpha: long packed rows get too little noise. Leave it out.")
    if block.trainer.get("loss_type") == "dft" and block.trainer.get("label_smoothing_factor"):
        raise UserError(f"{name}.trainer.label_smoothing_factor: the loss dft does not read this. Leave it out.")
    if block.trainer.get("dataloader_persistent_workers") and not block.runtime.loader_workers:
        raise UserError(f"{name}.trainer.dataloader_persistent_workers: set {name}.runtime.loader_workers too.")
    trl_values.validate_values(f"{name}.trainer", block.trainer, types, enumerations() if block.trainer else {})


def allowed_arguments(name: str) -> set[str]:
    """Return the names of all arguments that `NAME.trainer` accepts."""
    elsewhere = {*SET_BY_STAGE, *SET_BY_LAUNCH, *SET_ELSEWHERE, *OBJECTIVES[name].typed}
    return argument_types(name).keys() - elsewhere


@cache
def argument_types(name: str) -> dict[str, str]:
    """Return the types of an objective's arguments in its TRL configuration, as its source writes them."""
    unread = () if name == "sft" else ("label_smoothing_factor",)
    return {key: ast.unparse(field.annotation) for key, field in argument_fields(name).items() if key not in unread}


@cache
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
