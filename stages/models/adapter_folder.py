"""Check the folder of an adapter before peft reads it: its adapter_config.json alone, and against its tensors.

peft allocates what the config asks for, matches its patterns without a limit of time, and only warns of tensors that are
missing. The file of tensors says which layers are adapted, and with which rank."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex
from safetensors import SafetensorError, safe_open

from stages.config.errors import UserError
from stages.models import safe_folder
from stages.models.adapter_fields import (
    NEVER_NULL,
    OPTIONAL,
    REQUIRED,
    VARIANTS,
    problem_of_field,
)
from stages.store.source_files import ADAPTER_CONFIG

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PATTERN_SECONDS = 1.0  # for one pattern of adapter_config.json and one layer
MODULE = regex.compile(r"base_model\.model\.(.+?)\.(lora_(?:embedding_)?[AB])(?:\.weight)?")


@dataclass(frozen=True)
class Adapter:
    """The config of an adapter whose fields have been checked, and the shapes of its tensors by name."""

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, list[int]]

    @cached_property
    def factors(self) -> dict[str, dict[str, list[int]]]:
        """The shapes of the low-rank factors by layer, then by factor: lora_A, lora_B."""
        factors = dict[str, dict[str, list[int]]]()
        for name, shape in self.shapes.items():
            match = MODULE.fullmatch(name)
            if match:
                factors.setdefault(match[1], {})[match[2]] = shape
        return factors

    @cached_property
    def adapted_names(self) -> list[str]:
        """The names that peft matches patterns with: of adapted layers, and of adapted parameters, as of experts."""
        names = [*self.factors]
        for parameter in self.config.get("target_parameters") or []:
            for module in self.factors:
                # peft wraps a layer once for each of its parameters
                layer = module.removesuffix(".base_layer")
                names.append(f"{layer}.{parameter.rpartition('.')[2]}")
        return names

    def without_patterns(self) -> dict[str, Any]:
        """Return the fields in which peft would match patterns against every layer's name, with the names of adapted
        layers in place of patterns."""
        fields = dict[str, Any]()
        targets = self.config.get("target_modules")
        has_pattern = isinstance(targets, str) and targets != "all-linear"
        if has_pattern or isinstance(self.config.get("exclude_modules"), str):
            fields |= {"target_modules": [*self.factors], "exclude_modules": None}
        for field in ("rank_pattern", "alpha_pattern"):
            patterns = self.config.get(field) or {}
            values = dict[str, Any]()
            for name in self.adapted_names:
                pattern = self.pattern_of(field, name)
                if pattern is not None:
                    values[regex.escape(name, special_only=True)] = patterns[pattern]
            fields[field] = values
        return fields

    def pattern_of(self, field: str, module: str) -> str | None:
        """Return the first pattern of `rank_pattern` or `alpha_pattern` that a layer's name ends with, as peft does."""
        for pattern in self.config.get(field) or {}:
            if self.matches(field, pattern, rf"(.*\.)?({pattern})", module):
                return str(pattern)
        return None

    def scale_of(self, module: str) -> float:
        """Return the factor of a layer's product of factors, with alpha and rank by the layer's own patterns."""
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        pattern = self.pattern_of("rank_pattern", module)
        if pattern is not None:
            rank = self.config["rank_pattern"][pattern]
        pattern = self.pattern_of("alpha_pattern", module)
        if pattern is not None:
            alpha = self.config["alpha_pattern"][pattern]
        return self.factor(rank, alpha)

    def factor(self, rank: int, alpha: float) -> float:
        """Return alpha / r (arXiv:2106.09685), with `use_rslora` alpha / √r (arXiv:2312.03732)."""
        if self.config.get("use_rslora"):
            return float(alpha / math.sqrt(rank))
        return float(alpha / rank)

    def matches(self, field: str, shown: str, pattern: str, module: str) -> bool:
        """Return whether a pattern is the whole name of a layer. Raise UserError if it cannot be matched in time."""
        try:
            return regex.fullmatch(pattern, module, timeout=PATTERN_SECONDS) is not None
        except TimeoutError as error:
            problem = f"it takes longer than {PATTERN_SECONDS:.0f} second to match"
            raise self.field_error(field, shown, problem) from error
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise self.field_error(field, shown, f"it is not a pattern: {error}") from error

    def require_all_loaded(self, missing: Sequence[str], unexpected: Sequence[str]) -> None:
        """Raise UserError if peft found no tensor for a part of the config, or no layer of the model for a tensor."""
        weights = self.folder / ADAPTER_WEIGHTS
        way_out = "Name the model that it was trained on: model.path=BASE"
        if unexpected:
            problem = f"by {ADAPTER_CONFIG}, the model has no place for {len(unexpected)} tensors"
            raise UserError(f"{weights}: {problem}, as {unexpected[0]}. {way_out}.")
        if missing:
            problem = f"{len(missing)} tensors that {ADAPTER_CONFIG} describes are not in it"
            raise UserError(f"{weights}: {problem}, as {missing[0]}. {way_out}.")

    def field_error(self, field: str, value: Any, problem: str) -> UserError:
        return field_error(self.folder / ADAPTER_CONFIG, field, value, problem)


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder, of which nothing but headers is read.
    Raise UserError, naming file and field, if a field has a value that no adapter has, or that its tensors contradict."""
    safe_folder.validate_folder(folder, adapter=True)
    adapter = Adapter(folder, read_config(folder), read_shapes(folder / ADAPTER_WEIGHTS))
    validate_ranks(adapter)
    validate_layers(adapter)
    return adapter


def read_config(folder: Path) -> dict[str, Any]:
    """Return the adapter_config.json of a folder. Raise UserError if there is none, or for the first field with a value
    that no adapter has. Fields that peft does not know are left to it: it ignores them, as those of a later version."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise UserError(f"{folder} has no {ADAPTER_CONFIG}. Name the folder of an adapter.")
    config = safe_folder.read_json(file)
    if not isinstance(config, dict):
        raise UserError(f"{file}: it is not a JSON object. Save the adapter again.")
    for field in (*REQUIRED, *NEVER_NULL, *OPTIONAL, *VARIANTS):
        problem = problem_of_field(config, field)
        if problem:
            raise field_error(file, field, config.get(field), problem)
    return config


def field_error(file: Path, field: str, value: Any, problem: str) -> UserError:
    way_out = (
        "Correct it in this file, or merge the adapter where it was trained: model.path=MERGED"
    )
    return UserError(f"{file}: {field}={value!r:.100}: {problem}. {way_out}.")


def read_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes in the header of a safetensors file. Raise UserError if the file is missing or damaged."""
    if not file.is_file():
        raise UserError(f"{file.parent} has no {file.name}. Convert the adapter to safetensors.")
    try:
        with safe_open(file, "numpy") as content:
            return {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}. Copy it again.") from error


def validate_ranks(adapter: Adapter) -> None:
    """Raise UserError if a factor has no other, or if the config names another rank than a layer's factors have."""
    factors = adapter.factors
    if not (factors or adapter.config.get("trainable_token_indices")):
        raise UserError(
            f"{adapter.folder / ADAPTER_WEIGHTS}: no tensor is named as peft names LoRA's, base_model.model.….lora_A.weight. "
            "Save the adapter with peft."
        )
    has_experts = bool(adapter.config.get("target_parameters"))
    for module, shapes in factors.items():
        first = shapes.get("lora_A") or shapes.get("lora_embedding_A") or []
        second = shapes.get("lora_B") or shapes.get("lora_embedding_B") or []
        if len(first) < 2 or len(second) < 2:
            raise UserError(
                f"{adapter.folder / ADAPTER_WEIGHTS}: {module} has not both matrices lora_A and lora_B. Copy it again."
            )
        pattern = adapter.pattern_of("rank_pattern", module)
        field = "r" if pattern is None else "rank_pattern"
        rank = adapter.config["r"] if pattern is None else adapter.config["rank_pattern"][pattern]
        # the factors of a layer of experts are side by side in one tensor
        fits = first[0] == second[1] and (
            first[0] == rank or (has_experts and first[0] % rank == 0)
        )
        if not fits:
            problem = f"the tensors of {module} have the shapes {first} and {second}"
            raise adapter.field_error(field, rank, problem)


def validate_layers(adapter: Adapter) -> None:
    """Raise UserError if the file has factors of a layer that `target_modules` does not name, or no tensor of a layer
    that was trained whole."""
    if adapter.config.get("ensure_weight_tying"):
        return  # peft adds layers that share weights, which only the model knows
    for name in adapter.config.get("modules_to_save") or []:
        # peft adds the usual names of reward heads itself
        is_saved = any(f".{name}." in tensor for tensor in adapter.shapes)
        if not is_saved and adapter.config.get("task_type") != "SEQ_CLS":
            raise adapter.field_error("modules_to_save", name, "there is no tensor of it")
    targets = adapter.config.get("target_modules")
    if targets in (None, "all-linear") or adapter.config.get("target_parameters"):
        return
    for module in adapter.factors:
        if isinstance(targets, str):
            is_named = adapter.matches("target_modules", targets, targets, module)
        else:
            is_named = ends_with_any(module, targets)
        if not is_named:
            raise adapter.field_error(
                "target_modules", targets, f"it does not name {module}, of which there are tensors"
            )


def ends_with_any(module: str, names: Iterable[str]) -> bool:
    return f".{module}".endswith(tuple(f".{name}" for name in names))
