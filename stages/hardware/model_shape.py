"""A model's config.json and the shape that it gives, wherever the model is: no weights are read, and no torch.

The file may come from anybody, so it is checked before anything is computed from it.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.models import Model, RandomInit
from stages.config.blocks.training import LoRA
from stages.store.sealed_json import Damaged, load_json
from stages.store.source_files import locate

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

QK_NORM = ("qwen3", "gemma3", "olmo2", "olmo3")  # what model types begin with that normalise query and key
POST_NORMS = ("gemma2", "gemma3")
LINEAR = ("q_proj", "o_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

MOST_PER_BYTE = 4  # parameters in a byte of weights: nobody stores them in less than two bits

# GGUF's metadata types as struct formats; 8 is a string, 9 an array (ggml's docs/gguf.md).
GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


@dataclass(frozen=True)
class Shape:
    """A decoder's widths. `query` and `key` are heads times their width; `intermediate` is an expert's, where there
    are `experts`, of which a token goes through `active`."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    query: int
    key: int
    tied: bool
    experts: int = 1
    active: int = 1
    qk_norm: bool = False
    post_norms: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape | None":
        """From a model's config.json; None where that is no transformer of the usual names (Mamba, GPT-2)."""
        config = config.get("text_config") or config
        if not all(isinstance(config.get(name), int) for name in REQUIRED):
            return None
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        width = config.get("head_dim") or hidden // heads
        experts = config.get("num_local_experts") or config.get("num_experts") or 1
        kind = config.get("model_type", "")
        return cls(
            hidden=hidden,
            intermediate=config.get("moe_intermediate_size" if experts > 1 else "") or config["intermediate_size"],
            layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            query=heads * width,
            key=(config.get("num_key_value_heads") or heads) * width,
            tied=config.get("tie_word_embeddings", kind.startswith("gemma")),
            experts=experts,
            active=config.get("num_experts_per_tok") or 1,
            qk_norm=kind.startswith(QK_NORM),
            post_norms=kind.startswith(POST_NORMS),
        )

    @property
    def linear(self) -> int:
        """Parameters of all layers: their linear maps."""
        attention = 2 * self.hidden * (self.query + self.key)
        return self.layers * (attention + 3 * self.experts * self.hidden * self.intermediate)

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All but the norms' and routers', which are few."""
        return self.linear + self.embedding * (1 if self.tied else 2)

    def adapter(self, lora: LoRA) -> int:
        """Parameters of a low-rank adapter."""
        wide = self.experts * (self.hidden + self.intermediate)
        ends = [self.hidden + self.query] * 2 + [self.hidden + self.key] * 2 + [wide] * 3
        sizes = dict(zip(LINEAR, ends, strict=True))
        return self.layers * lora.rank * sum(sizes[name] for name in adapted(lora))


def adapted(lora: LoRA) -> list[str]:
    """Which of a layer's linear maps have an adapter."""
    return [name for name in LINEAR if lora.target_modules == ["all-linear"] or name in lora.target_modules]


def config_of(cfg: Model, published: Path | None = None) -> dict[str, Any] | None:
    """The config.json of a base model: from its node where that is `published`, else from the folder, file or
    repository that it will be made from. None where the hub has it and cannot be reached."""
    if published and (published / "config.json").exists():
        return read(published)
    if cfg.random_init:
        return random_init(cfg.random_init)
    local = locate(str(cfg.path), "model.path")
    if local is None:
        return on_hub(str(cfg.path), cfg.revision)
    return read(local) if local.is_dir() else gguf(local)


def read(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model folder.

    Raises:
        Damaged: naming the file, and the first key whose value no model has, or not one with these weights.
        FileNotFoundError: where the folder has no config.json.
    """
    file = folder / "config.json"
    config, stored = load_json(file, checked), sum(weights.stat().st_size for weights in folder.glob("*.safetensors"))
    shape = Shape.of(config)
    if shape and 0 < MOST_PER_BYTE * stored < shape.parameters:
        sizes = ", ".join(f"{name}={(config.get('text_config') or config)[name]}" for name in REQUIRED)
        raise Damaged(
            file, f"{sizes}: {shape.parameters:,} parameters, and the weights beside it have {stored:,} bytes"
        )
    return config


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


def random_init(cfg: RandomInit) -> dict[str, Any]:
    """Of the small Llama that `base` makes."""
    return {
        "model_type": "llama",
        "hidden_size": cfg.hidden_size,
        "intermediate_size": 3 * cfg.hidden_size,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": max(cfg.heads // 2, 1),
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


def on_hub(repo: str, revision: str | None) -> dict[str, Any] | None:
    """One small file of the hub, or of its cache on this machine."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return read(Path(hf_hub_download(repo, "config.json", revision=revision)).parent)
    except (LocalEntryNotFoundError, HfHubHTTPError):
        return None


def gguf(path: Path) -> dict[str, Any]:
    """From the head of a GGUF file. The gguf package's reader takes seconds, for the tokenizer's lists."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as head:
        reader = Reader(head)
        _, _, tensors, entries = reader.numbers("4sIQQ")
        found = {reader.string(): reader.value() for _ in range(entries)}
        names = [reader.tensor() for _ in range(tensors)]
    kind = found["general.architecture"]
    config = {key: found[f"{kind}.{name}"] for key, name in GGUF_KEYS.items() if f"{kind}.{name}" in found}
    return config | {
        "model_type": kind,
        "vocab_size": found["tokenizer.ggml.tokens"],
        "tie_word_embeddings": "output.weight" not in names,
    }


@dataclass
class Reader:
    """Goes through the head of a GGUF file."""

    head: mmap.mmap
    place: int = 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.head, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self.place += length
        return self.head[self.place - length : self.place].decode(errors="replace")

    def value(self) -> Any:
        """A value of the metadata; of an array, how long it is."""
        (kind,) = self.numbers("I")
        if kind == GGUF_STRING:
            return self.string()
        if kind != GGUF_ARRAY:
            return self.numbers(GGUF_NUMBERS[kind])[0]
        kind, length = self.numbers("IQ")
        if kind in GGUF_NUMBERS:
            self.place += length * struct.calcsize(f"<{GGUF_NUMBERS[kind]}")
        else:  # strings: nothing nests arrays
            for _ in range(length):
                if self.place > len(self.head):
                    raise ValueError("a GGUF file that is cut off")
                self.place += 8 + int.from_bytes(self.head[self.place : self.place + 8], "little")
        return length

    def tensor(self) -> str:
        """The name of a tensor; its shape, type and place are passed over."""
        name = self.string()
        (dimensions,) = self.numbers("I")
        self.place += 8 * dimensions + 12
        return name
