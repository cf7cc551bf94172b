"""The fields of peft's adapter_config.json that decide what is loaded, each with a test of its value."""

import math
import re
from collections.abc import Callable
from typing import Any

LARGEST = 1 << 20  # above every rank, layer and number of tokens of an adapter
PLAIN_NAME = re.compile(r"[\w.-]+")
INITS = ("gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica", "lora_ga")
ANY_INIT = re.compile(f"{'|'.join(INITS)}|pissa_niter_[0-9]{{1,2}}")
# peft would change the layers of the model itself, import a module by its name, or could not merge
VARIANTS = (
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)


def is_whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= LARGEST


def is_rank(value: Any) -> bool:
    return is_whole(value, least=1)


def is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_model_name(value: Any) -> bool:
    """Return whether a value can be a path or an id: of visible characters, and not longer than a path may be."""
    if not (is_text(value) and value.isprintable() and len(value) < 4096):
        return False
    return all(len(part.encode()) < 256 for part in value.split("/"))


def is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def is_plain_name(value: Any) -> bool:
    return isinstance(value, str) and PLAIN_NAME.fullmatch(value) is not None


def are_wholes(value: Any) -> bool:
    return is_list(value, is_whole)


def are_layers(value: Any) -> bool:
    return is_whole(value) or are_wholes(value)


def are_targets(value: Any) -> bool:
    return is_text(value) or is_list(value, is_text)


def are_names(value: Any) -> bool:
    return is_list(value, is_plain_name)


def are_one_or_more_names(value: Any) -> bool:
    return is_plain_name(value) or are_names(value)


def are_tokens(value: Any) -> bool:
    by_layer = isinstance(value, dict) and is_list([*value], is_plain_name)
    return are_wholes(value) or (by_layer and all(map(are_wholes, value.values())))


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_lora(value: Any) -> bool:
    return bool(value == "LORA")


def is_task(value: Any) -> bool:
    return value in ("CAUSAL_LM", "SEQ_CLS")


def is_bias(value: Any) -> bool:
    return value in ("none", "all", "lora_only")


def is_init(value: Any) -> bool:
    return is_flag(value) or (is_text(value) and ANY_INIT.fullmatch(value) is not None)


def are_ranks(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_rank, value.values()))


def are_positive(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_positive, value.values()))


def are_few(value: Any) -> bool:
    return are_ranks(value) and max(value.values(), default=0) <= 64


Check = tuple[Callable[[Any], bool], str]  # of a value, and what it must be
NAMES = (are_names, "a list of names")
TARGETS = (are_targets, "a list of names, or a pattern")
FLAG = (is_flag, "true or false")

REQUIRED: dict[str, Check] = {
    "peft_type": (is_lora, "LORA: no other adapter is read"),
    "r": (is_rank, f"a whole number from 1 to {LARGEST:,}"),
    "lora_alpha": (is_positive, "a number above 0"),
}
# peft has a default for these, but does not take null
NEVER_NULL: dict[str, Check] = {
    "lora_dropout": (is_share, "a number from 0, and below 1"),
    "bias": (is_bias, "none, all or lora_only"),
}
OPTIONAL: dict[str, Check] = {
    "task_type": (is_task, "CAUSAL_LM"),
    "base_model_name_or_path": (is_model_name, "a path or an id"),
    "revision": (is_text, "a text"),
    "target_modules": TARGETS,
    "exclude_modules": TARGETS,
    "modules_to_save": NAMES,
    "target_parameters": NAMES,
    "layers_to_transform": (are_layers, "a list of whole numbers"),
    "layers_pattern": (are_one_or_more_names, "a name, or a list of names"),
    "rank_pattern": (are_ranks, "ranks by layer"),
    "alpha_pattern": (are_positive, "numbers above 0 by layer"),
    "trainable_token_indices": (are_tokens, "a list of token ids, or such lists by layer"),
    "init_lora_weights": (is_init, f"true, false, {', '.join(INITS)}"),
    "loftq_config": (are_few, "whole numbers from 1 to 64 by name"),
    "fan_in_fan_out": FLAG,
    "use_rslora": FLAG,
    "use_dora": FLAG,
    "lora_bias": FLAG,
    "inference_mode": FLAG,
    "ensure_weight_tying": FLAG,
}


def problem_of_field(config: dict[str, Any], field: str) -> str:
    """Return what is wrong with the value of a field; '' for a value that an adapter may have."""
    if field in VARIANTS:
        is_unset = config.get(field) in (None, False)
        return "" if is_unset else "this variant of LoRA is not read"
    is_valid, expected = {**REQUIRED, **NEVER_NULL, **OPTIONAL}[field]
    if field not in config:
        return f"it is missing, and must be {expected}" if field in REQUIRED else ""
    value = config[field]
    is_unset = value is None and field in OPTIONAL
    return "" if is_unset or is_valid(value) else f"it must be {expected}"
