"""What an adapter's own keys and tensors say: scale, patterns, layers, size and rank of what it adds to its base."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.config.errors import UserError
from stages.evaluation.stored_tensors import StoredTensors, spread
from stages.extras.examine.folders.adapter_layers import layer_update
from stages.extras.examine.folders.difference import NONE, Difference, Level, value_text
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.extras.examine.folders.tensor_keys import (
    RANKED,
    directions_difference,
    examples,
    not_finite_differences,
    percent,
)
from stages.extras.examine.folders.tensor_statistics import count_directions, tensor_figures
from stages.models.adapter_folder import Adapter, ends_with_any, read_adapter
from stages.models.adapter_product import MAGNITUDE, PREFIX
from stages.models.safe_folder import read_json
from stages.store.source_files import ADAPTER_CONFIG

SAVED = ".modules_to_save"
NO_ADAPTER = "no adapter"
OTHER_BASES = ("pissa", "olora", "loftq", "corda")  # initial values that are taken out of the base
NARROWING = ("layers_to_transform", "exclude_modules", "target_parameters")
LARGE = 0.3  # of the length of the changed weights: adapters that were trained soundly add a tenth or less


def adapter_differences(start: ModelFolder, model: ModelFolder) -> Iterator[Difference]:
    """Yield what an adapter does to the weights below it."""
    assert model.adapter
    tensors, below = StoredTensors.of_folder(model.adapter), StoredTensors.of_folder(model.place)
    yield from base_differences(start, model)
    try:
        adapter = read_adapter(model.adapter)
    except UserError as error:
        text = str(error).removeprefix(f"{model.adapter}/")
        yield row_difference("adapter", NO_ADAPTER, text, Level.breaks)
        return
    figures = [tensor_figures(below, tensors, name) for name in sorted(tensors.files)]
    yield from not_finite_differences(figures)
    yield from setting_differences(adapter)
    yield from layer_differences(adapter, below)
    yield from update_differences(adapter, tensors, below)


def base_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return the difference of the model that an adapter names from the start, if both are on this machine."""
    assert model.adapter
    config = read_json(model.adapter / ADAPTER_CONFIG)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not named or Path(str(named)).resolve() == start.place.resolve():
        return []
    if model.place.resolve() == start.place.resolve():
        text = f"{named}, which is not a folder here"
        return [row_difference("adapter: base", f"read over {start.place}", text, Level.differs)]
    old, new = StoredTensors.of_folder(start.place), StoredTensors.of_folder(model.place)
    clause, level = compared_bases(old, new)
    return [row_difference("adapter: base", str(start.place), f"{named}, {clause}", level)]


def compared_bases(old: StoredTensors, new: StoredTensors) -> tuple[str, Level]:
    """Return a clause on the weights that an adapter names beside the start's, and what the difference does."""
    if old.problems or new.problems or not (old.files and new.files):
        return "whose weights cannot be compared with these: not all can be read", Level.changes
    names = sorted(old.files.keys() | new.files.keys())
    others = [name for name in names if old.shapes.get(name) != new.shapes.get(name)]
    if others:
        return f"whose weights have other names or shapes: {examples(others)}", Level.changes
    change, whole = 0.0, 0.0
    for name in names:
        figures = tensor_figures(old, new, name)
        change += figures.change
        whole += figures.before.square if figures.before else 0.0
    if not change:
        return "the same weights", Level.differs
    return f"whose weights are {percent(change, whole)} from these", Level.changes


def setting_differences(adapter: Adapter) -> list[Difference]:
    """Return the scale of an adapter, and its keys that change how it is added."""
    differences = [row_difference("adapter: scale", NO_ADAPTER, scale_text(adapter), Level.differs)]
    has_magnitudes = any(MAGNITUDE in name for name in adapter.shapes)
    uses_magnitudes = bool(adapter.config.get("use_dora"))
    if has_magnitudes != uses_magnitudes:
        have = "some" if has_magnitudes else "no"
        text = f"use_dora {str(uses_magnitudes).lower()}, and {have} tensors of magnitudes"
        differences.append(row_difference("adapter: magnitudes", NO_ADAPTER, text, Level.changes))
    elif uses_magnitudes:
        differences.append(row_difference("adapter: use_dora", NO_ADAPTER, "true", Level.differs))
    begins = adapter.config.get("init_lora_weights")
    if str(begins).startswith(OTHER_BASES):
        row = row_difference("adapter: init_lora_weights", NO_ADAPTER, str(begins), Level.changes)
        differences.append(row)
    revision = adapter.config.get("revision")
    if revision:
        text = value_text(revision)
        differences.append(row_difference("adapter: revision", NO_ADAPTER, text, Level.differs))
    unused = list[str]()
    for field in ("rank_pattern", "alpha_pattern"):
        used = {adapter.pattern_of(field, name) for name in adapter.adapted_names}
        patterns = adapter.config.get(field) or {}
        unused += [f"{field} {pattern}" for pattern in patterns if pattern not in used]
    if unused:
        differences.append(
            row_difference("adapter: patterns", NO_ADAPTER, ", ".join(unused), Level.changes)
        )
    return differences


def scale_text(adapter: Adapter) -> str:
    """Return alpha and rank with the scale that they make, and the range of scales if patterns give layers their own."""
    config = adapter.config
    root = "√" if config.get("use_rslora") else ""
    text = f"alpha {config['lora_alpha']:g} / {root}r {config['r']} = {adapter.factor(config['r'], config['lora_alpha']):.3g}"
    scales = sorted({adapter.scale_of(module) for module in adapter.factors})
    if len(scales) > 1:
        text = f"{text}; by layer {scales[0]:.3g} to {scales[-1]:.3g}"
    return text


def layer_differences(adapter: Adapter, below: StoredTensors) -> list[Difference]:
    """Return the layers that an adapter changes, and those that the model below does not have."""
    names = sorted({module.rpartition(".")[2] for module in adapter.factors})
    text = f"{len(adapter.factors)}: {', '.join(names)}"
    differences = [row_difference("adapter: layers", NO_ADAPTER, text, Level.differs)]
    missing = [module for module in sorted(adapter.factors) if f"{module}.weight" not in below]
    # experts are parameters without a name of their own
    if missing and not adapter.config.get("target_parameters"):
        differences.append(
            row_difference("adapter: without a place", NONE, examples(missing), Level.breaks)
        )
    absent = layers_without_tensors(adapter, below)
    if absent:
        text = f"{len(absent)} of {len(absent) + len(adapter.factors)}, as {absent[0]}"
        differences.append(row_difference("adapter: layers without it", NONE, text, Level.changes))
    return differences


def layers_without_tensors(adapter: Adapter, below: StoredTensors) -> list[str]:
    """Return the layers that `target_modules` names and for which the adapter has no tensors; [] where other keys choose
    among them."""
    config = adapter.config
    targets = config.get("target_modules")
    is_narrowed = any(config.get(key) for key in NARROWING)
    if is_narrowed or not isinstance(targets, list | str) or targets == "all-linear":
        return []
    absent = list[str]()
    for name in sorted(below.files):
        module = name.removesuffix(".weight")
        if module == name or module in adapter.factors or len(below.shapes[name]) != 2:
            continue
        if isinstance(targets, str):
            is_named = adapter.matches("target_modules", targets, targets, module)
        else:
            is_named = ends_with_any(module, targets)
        if is_named:
            absent.append(module)
    return absent


def update_differences(
    adapter: Adapter, tensors: StoredTensors, below: StoredTensors
) -> list[Difference]:
    """Return size and rank of what an adapter adds, layers without any effect, and what it replaces."""
    change, whole = 0.0, 0.0
    directions, sides = list[int](), list[int]()
    idle, unfit = list[str](), list[str]()
    modules = [module for module in sorted(adapter.factors) if f"{module}.weight" in below]
    ranked = {*spread(modules, RANKED)}
    for module in modules:
        weight = below.matrix(f"{module}.weight")
        update = layer_update(adapter, tensors, module, weight)
        if update is None:
            unfit.append(module)
            continue
        length = float(update.double().square().sum())
        change += length
        whole += float(weight.double().square().sum())
        if not length:
            idle.append(module)
        elif module in ranked:
            directions.append(count_directions(update))
            sides.append(min(update.shape))
    differences = list[Difference]()
    if unfit:
        differences.append(row_difference("adapter: shape", NONE, examples(unfit), Level.breaks))
    if whole:
        level = Level.changes if change >= LARGE**2 * whole else Level.differs
        text = f"{percent(change, whole)} of the changed weights"
        differences.append(row_difference("adapter: change", NO_ADAPTER, text, level))
    if idle:
        level = Level.changes if len(idle) == len(modules) else Level.differs
        text = f"zero in {len(idle)} of {len(modules)} layers"
        differences.append(row_difference("adapter: B", NO_ADAPTER, text, level))
    if directions:
        differences.append(directions_difference("adapter", directions, sides))
    return [*differences, *replaced_differences(tensors, below)]


def replaced_differences(tensors: StoredTensors, below: StoredTensors) -> list[Difference]:
    """Return the weights that an adapter replaces, with their change."""
    changes = list[str]()
    for name in sorted(tensors.files):
        target = name.removeprefix(PREFIX).replace(SAVED, "")
        if ".lora_" in name or target not in below:
            continue
        if tensors.shapes[name] != below.shapes[target]:
            changes.append(f"{target}: another shape")
            continue
        old, new = below.matrix(target), tensors.matrix(name)
        size = percent(float((new - old).square().sum()), float(old.square().sum()))
        changes.append(f"{target} {size}")
    if not changes:
        return []
    return [row_difference("adapter: trained whole", NONE, listed_changes(changes), Level.differs)]


def listed_changes(changes: Sequence[str]) -> str:
    first_changes = ", ".join(changes[:3])
    return first_changes if len(changes) <= 3 else f"{first_changes} and {len(changes) - 3} others"
