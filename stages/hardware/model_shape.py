"""Read and check a model's config.json, and derive the model's shape, without reading weights or importing torch.

Its sizes are checked before anything is computed from them. The library that loads the model checks the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.objective import LoRA
from stages.config.errors import UserError
from stages.store.sealed_json import Damaged, load_json

REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
OPTIONAL = ["num_key_value_heads", "head_dim", "max_position_embeddings", "moe_intermediate_size"]
OPTIONAL += ["num_experts", "num_local_experts", "num_experts_per_tok"]
# some models list one per layer
BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
LARGEST = 1 << 40  # above every size of a model
# model types with these prefixes normalise query and key
QK_NORM = ("qwen3", "gemma3", "olmo2", "olmo3")
POST_NORMS = ("gemma2", "gemma3")
# model types whose MLP has two linear maps, not three
UNGATED = ("starcoder2", "gpt_neox", "phi", "nemotron")
LINEAR = ("q_proj", "o_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

# Files of a model folder that are read, and what a checkout without Git LFS has in their place
READ, POINTER = (".safetensors", ".json", ".jinja", ".model", ".txt"), b"version https://git-lfs"
MOST_PER_BYTE = 4  # parameters per byte of weights: a parameter has at least two bits


@dataclass(frozen=True)
class ModelShape:
    """The widths of a decoder. `query` and `key` are heads × head width. With several `experts`, `intermediate` is the
    width of one, and a token passes through `active` of them."""

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
    gated: bool = True

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelShape | None":
        """Return the shape in a config.json, or None if it lacks the usual keys of a transformer (Mamba, GPT-2), or
        has its experts under other keys (DeepSeek)."""
        config = config.get("text_config") or config
        if not all(isinstance(config.get(name), int) for name in REQUIRED):
            return None
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        width = config.get("head_dim") or hidden // heads
        experts = config.get("num_local_experts") or config.get("num_experts") or 1
        if experts == 1 and any(
            "expert" in key and type(n) is int and n > 1 for key, n in config.items()
        ):
            return None
        kind = config.get("model_type", "")
        return cls(
            hidden=hidden,
            intermediate=config.get("moe_intermediate_size" if experts > 1 else "")
            or config["intermediate_size"],
            layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            query=heads * width,
            key=(config.get("num_key_value_heads") or heads) * width,
            tied=config.get("tie_word_embeddings", kind.startswith("gemma")),
            experts=experts,
            active=config.get("num_experts_per_tok") or 1,
            qk_norm=kind.startswith(QK_NORM),
            post_norms=kind.startswith(POST_NORMS),
            gated=kind not in UNGATED,
        )

    @property
    def linear(self) -> int:
        """The number of parameters in the linear maps of all layers."""
        attention = 2 * self.hidden * (self.query + self.key)
        return self.layers * (
            attention + (2 + self.gated) * self.experts * self.hidden * self.intermediate
        )

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """The number of parameters, without norms and routers, which are small."""
        return self.linear + self.embedding * (1 if self.tied else 2)

    def count_adapter(self, lora: LoRA) -> int:
        """Return the number of parameters of a low-rank adapter."""
        wide = self.experts * (self.hidden + self.intermediate)
        ends = [self.hidden + self.query] * 2 + [self.hidden + self.key] * 2 + [wide] * 3
        sizes = dict(zip(LINEAR, ends, strict=True))
        return self.layers * lora.rank * sum(sizes[name] for name in adapted_layers(lora))


def adapted_layers(lora: LoRA) -> list[str]:
    """Return the names of a layer's linear maps that have an adapter."""
    return [
        name
        for name in LINEAR
        if lora.target_modules == ["all-linear"] or name in lora.target_modules
    ]


def refuse_pointers(folder: Path) -> None:
    """Raise UserError if a file that is read of a model folder is a pointer of Git LFS."""
    for file in sorted(folder.glob("*")):
        if file.suffix in READ:
            refuse_pointer(file)


def refuse_pointer(file: Path) -> None:
    """Raise UserError if a file is a pointer of Git LFS."""
    if not file.is_file():
        return
    with file.open("rb") as content:
        is_pointer = content.read(len(POINTER)) == POINTER
    if is_pointer:
        way_out = "Fetch it in its checkout: git lfs pull"
        raise UserError(f"{file}: is a pointer of Git LFS, not the file itself. {way_out}.")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model folder.

    Raises:
        UserError: if a file of the folder is a pointer of Git LFS.
        Damaged: naming the file and the first key with a value that no model has or that does not fit the weights.
        FileNotFoundError: if the folder has no config.json."""
    refuse_pointers(folder)
    file = folder / "config.json"
    config = load_json(file, validate_config)
    shape = ModelShape.from_config(config)
    stored = sum(w.stat().st_size for w in folder.glob("*.safetensors"))
    if shape and 0 < MOST_PER_BYTE * stored < shape.parameters:
        part = config.get("text_config") or config
        sizes = ", ".join(f"{name}={part[name]}" for name in (*REQUIRED, *OPTIONAL) if name in part)
        raise Damaged(
            file,
            f"{sizes}: {shape.parameters:,} parameters, but the weights have only {stored:,} bytes",
        )
    return config


def validate_config(config: Any) -> dict[str, Any]:
    """Return the config. Raise ValueError if it names no architecture, or has a size that no model has."""
    if not isinstance(config, dict):
        raise ValueError("it is not a JSON object")
    if not (isinstance(config.get("model_type"), str) and config["model_type"]):
        raise ValueError("model_type is missing: it names the architecture")
    if not isinstance(text_config := config.get("text_config") or {}, dict):
        raise ValueError(f"text_config={text_config!r:.60}: it must be an object")
    for part in (config, text_config):
        for key in part.keys() & {*REQUIRED, *OPTIONAL}:
            value, least = part[key], int(key in REQUIRED)
            sizes = value if isinstance(value, list) and value and key in BY_LAYER else [value]
            is_unset = value is None and key in OPTIONAL
            if not is_unset and not all(type(n) is int and least <= n <= LARGEST for n in sizes):
                raise ValueError(
                    f"{key}={value!r:.60}: it must be an integer from {least} to {LARGEST:,}"
                )
    return config
