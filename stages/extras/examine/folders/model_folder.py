"""The folder of a model as it came, read part by part, without building the model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.evaluation.stored_tensors import StoredTensors
from stages.models.loading import describe_gguf, load_config, load_tokenizer
from stages.models.safe_folder import read_json

TOKENIZER = "tokenizer_config.json"


@dataclass
class ModelFolder:
    """A model by its title. `place`: its folder or GGUF file. `adapter`: the folder of an adapter, if the model is one
    over the weights in `place`."""

    title: str
    place: Path
    adapter: Path | None = None
    config_problem: str = ""

    @property
    def is_gguf(self) -> bool:
        return self.place.is_file()

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the adapter if a tokenizer stands there, else that of the weights."""
        if self.adapter and (self.adapter / TOKENIZER).exists():
            return self.adapter
        return self.place

    @cached_property
    def gguf(self) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        return describe_gguf(self.place)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer. Raise UserError if it cannot be loaded."""
        if self.is_gguf:
            return self.gguf[1]
        folder = self.tokenizer_folder
        return load_tokenizer(folder, adapter=folder == self.adapter)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The tokens by id; {} if the tokenizer cannot be loaded, which has a row of its own."""
        try:
            vocabulary = self.tokenizer.get_vocab()
        except UserError:
            return {}
        return {number: token for token, number in vocabulary.items()}

    @cached_property
    def config(self) -> PretrainedConfig | None:
        """The config as its class reads it; None if no class does, and `config_problem` says why."""
        if self.is_gguf:
            return self.gguf[0]
        try:
            return load_config(self.place)
        except UserError as error:
            self.config_problem = str(error)
            return None

    @cached_property
    def has_unreadable_weights(self) -> bool:
        """True if a file of weights cannot be read: these have a row of their own, and fit no config."""
        return not self.is_gguf and bool(StoredTensors.of_folder(self.place).problems)

    def read_settings(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of settings; {} without the file. Raise UserError if it is not an object."""
        file = self.place / name
        if self.is_gguf or not file.exists():
            return {}
        settings = read_json(file)
        if not isinstance(settings, dict):
            raise UserError(f"{file}: it is not a JSON object. Save the model again.")
        return settings
