"""A model's config.json, checked before anything is computed from it: the file may come from anybody."""

import math
from collections.abc import Iterator
from typing import Any

WIDTH = 1 << 22  # the widest layers have some hundred thousand features
HEADS = 1 << 16
# Integers, from where to where.
AMOUNTS = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "n_embd"), (1, WIDTH)),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), (1, 1 << 12)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "head_dim"), (1, HEADS)),
    "vocab_size": (1, 1 << 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), (1, 1 << 40)),
    "moe_intermediate_size": (0, WIDTH),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), (0, HEADS)),
}
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads")  # which some list for each layer
SHARES = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attention_dropout", "initializer_range")
POSITIVE = ("rope_theta", "factor")  # wherever they stand
OBJECTS = ("text_config", "rope_parameters", "rope_scaling", "quantization_config")
WORDS = ("model_type", "hidden_act", "hidden_activation")
TYPES = ("dtype", "torch_dtype")  # a word, or one for each part of the model
LISTS = ("architectures", "layer_types")  # of words


def checked(config: Any) -> dict[str, Any]:
    """Return a config as it was read. Raises ValueError for the first value that no model can have."""
    if not isinstance(config, dict):
        raise ValueError("it is not a JSON object")
    if not config.get("model_type"):
        raise ValueError("model_type is missing: it says which architecture this is")
    for part in (config, config.get("text_config") or {}):
        for key, value in part.items():
            if told := wrong(key, value):
                raise ValueError(f"{key}={value!r:.60}: it must be {told}")
    for key, value in numbers(config):
        if not math.isfinite(value) or abs(value) >= 1 << 63:
            raise ValueError(f"{key}={value!r:.60}: it must be a finite number of 64 bits")
        if key in POSITIVE and value <= 0:
            raise ValueError(f"{key}={value!r:.60}: it must be positive")
    return config


def wrong(key: str, value: Any) -> str:
    """Return what a key's value must be; '' where it is that, or nothing is known of the key."""
    if value is None and key not in REQUIRED:
        return ""
    if key in AMOUNTS:
        least, most = AMOUNTS[key]
        each = value if isinstance(value, list) and value and key in BY_LAYER else [value]
        fits = all(type(n) is int and least <= n <= most for n in each)
        return "" if fits else f"an integer from {least:,} to {most:,}"
    if key in SHARES:
        fits = isinstance(value, int | float) and type(value) is not bool and 0 <= value <= 1
        return "" if fits else "a number from 0 to 1"
    if key in OBJECTS:
        return "" if isinstance(value, dict) else "an object"
    if key in WORDS:
        return "" if isinstance(value, str) and value else "a word"
    if key in TYPES:
        return "" if isinstance(value, str | dict) else "a word"
    if key in LISTS:
        words = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return "" if words else "a list of words"
    return ""


def numbers(config: Any) -> Iterator[tuple[str, int | float]]:
    """Yield every number of a config with its key, at any depth."""
    waiting = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]
        elif isinstance(value, int | float):
            yield key, value
