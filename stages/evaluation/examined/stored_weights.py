"""The tensors of a folder of safetensors, each read when it is asked for."""

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open

from stages.models.loading import files_by_tensor


class StoredWeights:
    """Tensors by name, in fp32."""

    def __init__(self, files: dict[str, Path]):
        self.files = files

    @classmethod
    def of_folder(cls, folder: Path) -> "StoredWeights":
        return cls(files_by_tensor(folder))

    @classmethod
    def of_file(cls, file: Path) -> "StoredWeights":
        with safe_open(file, framework="pt") as tensors:
            return cls(dict.fromkeys(tensors.keys(), file))

    @property
    def names(self) -> Collection[str]:
        return self.files.keys()

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor, without reading its values."""
        with safe_open(self.files[name], framework="pt") as tensors:
            return list(tensors.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            return tensors.get_tensor(name).float()  # type: ignore[no-any-return]
