"""Tensors in safetensors files, read in blocks of rows, so that memory is bounded."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from stages.config.errors import UserError
from stages.hardware.model_shape import refuse_pointer
from stages.models.loading import weight_files

BLOCK = 1 << 22  # elements that are read at once


class StoredTensors:
    """The tensors of some files by name. `problems`: the files that cannot be read, each with the reason. `repeated`: the
    tensors that stand in several files, with these: the last one is read."""

    def __init__(self, files: Sequence[Path]):
        self.files = dict[str, Path]()
        self.shapes = dict[str, list[int]]()
        self.types = dict[str, str]()
        self.problems = list[str]()
        self.repeated = dict[str, list[str]]()
        for file in files:
            try:
                refuse_pointer(file)
                self.read_header(file)
            except UserError as error:
                self.problems.append(str(error).removeprefix(f"{file.parent}/"))
            except (SafetensorError, OSError) as error:
                self.problems.append(f"{file.name}: {' '.join(str(error).split())[:120]}")

    @classmethod
    def of_folder(cls, folder: Path) -> "StoredTensors":
        return cls(weight_files(folder))

    def read_header(self, file: Path) -> None:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it has no iterator
                part = tensors.get_slice(name)
                if name in self.files:
                    earlier = self.repeated.get(name, [self.files[name].name])
                    self.repeated[name] = [*earlier, file.name]
                self.files[name] = file
                self.shapes[name] = list(part.get_shape())
                self.types[name] = str(part.get_dtype())

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yield a tensor as matrices of some rows each, in the type of the file. A vector is one row."""
        shape = self.shapes[name]
        with safe_open(self.files[name], framework="pt") as tensors:
            if len(shape) < 2:
                yield tensors.get_tensor(name).reshape(1, -1)
                return
            part = tensors.get_slice(name)
            step = max(1, BLOCK // max(1, math.prod(shape[1:])))
            for start in range(0, shape[0], step):
                yield part[start : start + step].flatten(0, -2)

    def matrix(self, name: str) -> torch.Tensor:
        """Return a whole tensor in fp32, as a matrix, with zeros for NaN and infinite values."""
        return torch.cat([as_numbers(block) for block in self.blocks(name)])

    def first_rows(self, name: str, count: int) -> torch.Tensor:
        """Return the first rows of a matrix as `matrix` has them; no others are read."""
        with safe_open(self.files[name], framework="pt") as tensors:
            return as_numbers(tensors.get_slice(name)[:count])


def as_numbers(block: torch.Tensor) -> torch.Tensor:
    """Return a block in fp32, with zeros for NaN and infinite values."""
    return block.float().nan_to_num(0.0, 0.0, 0.0)


def spread(names: Sequence[str], most: int) -> list[str]:
    """Return at most so many of the names, from all parts of the list."""
    step = max(1, math.ceil(len(names) / most))
    return list(names[::step])
