"""Read recipe files, each merged with the recipes that it is based on."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from stages.cli.explain import forbidden_keys
from stages.cli.spelling import recipe_files
from stages.config.schema import GROUPS

# Blocks of groups that do not have the group's name
BLOCKS = {group: [block] for block, group in GROUPS.items()}
BLOCKS |= {"eval": ["answer", "benchmark", "eval"]}
BLOCKS |= {f"eval/{name}": [f"eval.{name}"] for name in ("judged", "suites")}


def load_recipes(chosen: Sequence[str], all_names: bool = False) -> dict[str, DictConfig]:
    """Return the chosen recipes by name, each merged with the recipes that it is based on. With `all_names`, or if a
    chosen one cannot be read or is a pattern (`recipe=glob(*)`), all readable ones are returned."""
    files = recipe_files(*chosen)
    recipes: dict[str, DictConfig] = {}
    for name in sorted(files) if all_names else chosen:
        recipe = read_recipe(name, files)
        if recipe is not None:
            recipes[name] = recipe
    if all_names or recipes.keys() >= {*chosen}:
        return recipes
    return load_recipes(chosen, all_names=True)


def read_recipe(
    name: str, files: Mapping[str, Path], above: tuple[str, ...] = ()
) -> DictConfig | None:
    """Return a recipe merged with the recipes in its defaults list, in their order; None if it is unreadable. `above`:
    the recipes that are based on it, as no recipe is based on itself."""
    try:
        recipe = OmegaConf.load(files[name])
    except (
        KeyError,
        OSError,
        ValueError,
        yaml.YAMLError,
    ):  # deleted since it was listed, or unreadable
        return None  # only an error if it is chosen by name (stages/cli/explain.py)
    if not isinstance(recipe, DictConfig) or forbidden_keys(recipe):
        return None
    entries = list(recipe.get("defaults") or [])
    layers = list[DictConfig]()
    groups = list[Any]()
    for entry in entries:
        base = None
        if isinstance(entry, str) and entry not in above and entry != name:
            base = read_recipe(entry, files, (*above, name))
        if base is not None:
            layers.append(base)
        elif entry == "_self_":
            layers.append(recipe)
        else:
            groups.append(entry)
    if "_self_" not in entries:
        layers.append(recipe)
    if len(layers) > 1:
        recipe["defaults"] = groups
    return reduce(lay_over, layers)


def lay_over(below: DictConfig, above: DictConfig) -> DictConfig:
    """Return two recipes merged. A group that the upper one names replaces the lower one's blocks of that group."""
    below = below.copy()
    named = group_options(above)
    for group in named:
        for block in BLOCKS.get(group, [group]):
            take_out(below, block)
    defaults = list[Any]()
    for entry in below.get("defaults") or []:
        if named.keys().isdisjoint(group_options({"defaults": [entry]})):
            defaults.append(entry)
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    merged["defaults"] = [*defaults, *(above.get("defaults") or [])]
    return merged


def group_options(recipe: Mapping[Any, Any]) -> dict[str, str]:
    """Return the option of each group in a recipe's defaults list."""
    options: dict[str, str] = {}
    for entry in recipe.get("defaults") or []:
        if not isinstance(entry, str):
            for key, option in entry.items():
                options[str(key).removeprefix("override ").lstrip("/")] = option
    return options


def take_out(recipe: DictConfig, key: str) -> None:
    """Remove a key or block from a recipe, if it is there."""
    place, _, name = key.rpartition(".")
    holder = OmegaConf.select(recipe, place) if place else recipe
    if isinstance(holder, DictConfig):
        holder.pop(name, None)
