"""What a model is: where its weights and its chat template come from; and a part of one's own."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from stages.config.limits import between, random_seed, setting_name


@dataclass
class RandomInit:
    """A randomly initialised Llama with a byte-level BPE tokenizer trained in place (`model=tiny`)."""

    hidden_size: int = between(2, 65_536)
    layers: int = between(1, 1000)
    heads: int = between(1, 1024)
    vocab_size: int = between(260, 1_000_000)  # all bytes and four tokens of its own
    seed: int = random_seed()


@dataclass
class Model:
    path: str | None = MISSING
    revision: str | None = MISSING
    random_init: RandomInit | None = None
    of: str | None = setting_name()  # set by the pipeline: which key names it, where another than its own does

    @property
    def key(self) -> str:
        """What the path is called on the command line."""
        return self.of or "model.path"


@dataclass
class Own:
    """A part of your own, without a fork: class or function `name` in a Python file, made with `options`. The command
    line alone can name one. What is hashed, kept in the node and run are the same bytes."""

    file: str | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.file is not None


@dataclass
class Template:
    kind: str = MISSING
    path: str | None = MISSING
    resize: bool = MISSING
