"""Read recipe files, each merged with the recipes that it is based on."""

from collections.abc import Iterable, Mapping, Sequence
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
    names = sorted(files) if all_names else [name for name in chosen if name in files]
    recipes = {name: recipe for name in names if (recipe := read_recipe(name, files)) is not None}
    return (
        recipes
        if all_names or recipes.keys() >= {*chosen}
        else load_recipes(chosen, all_names=True)
    )


def read_recipe(
    name: str, files: Mapping[str, Path], below: tuple[str, ...] = ()
) -> DictConfig | None:
    """Return a recipe merged with the recipes in its defaults list, in their order; None if it is unreadable."""
    try:
        recipe = OmegaConf.load(files[name])
    except (OSError, ValueError, yaml.YAMLError):  # deleted since it was listed, or unreadable
        return None  # only an error if it is chosen by name (stages/cli/explain.py)
    if not isinstance(recipe, DictConfig) or forbidden_keys(recipe):
        return None
    entries, above = list(recipe.get("defaults") or []), (*below, name)
    names = [
        entry
        for entry in entries
        if isinstance(entry, str) and entry in files and entry not in above
    ]
    bases = {
        entry: base for entry in names if (base := read_recipe(entry, files, above)) is not None
    }
    if not bases:
        return recipe
    recipe["defaults"] = [entry for entry in entries if entry not in (*bases, "_self_")]
    layers = [
        recipe if entry == "_self_" else bases[entry]
        for entry in entries
        if entry in (*bases, "_self_")
    ]
    return reduce(lay_over, layers if "_self_" in entries else [*layers, recipe])


def lay_over(below: DictConfig, above: DictConfig) -> DictConfig:
    """Return two recipes merged. A group that the upper one names replaces the lower one's blocks of that group."""
    below, named = below.copy(), group_options(above)
    for block in blocks_of(named):
        take_out(below, block)
    lower = below.get("defaults") or []
    entries = [
        entry for entry in lower if named.keys().isdisjoint(group_options({"defaults": [entry]}))
    ]
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    merged["defaults"] = [*entries, *(above.get("defaults") or [])]
    return merged


def group_options(recipe: Mapping[Any, Any]) -> dict[str, str]:
    """Return the option of each group in a recipe's defaults list."""
    choices = [entry for entry in recipe.get("defaults") or [] if not isinstance(entry, str)]
    return {
        str(key).removeprefix("override ").lstrip("/"): option
        for each in choices
        for key, option in each.items()
    }


def blocks_of(groups: Iterable[str]) -> list[str]:
    """Return the blocks of groups, most of which have the group's name."""
    return [block for group in groups for block in BLOCKS.get(group, [group])]


def take_out(recipe: DictConfig, key: str) -> None:
    """Remove a key or block from a recipe, if it is there."""
    place, _, name = key.rpartition(".")
    holder = OmegaConf.select(recipe, place) if place else recipe
    if isinstance(holder, DictConfig):
        holder.pop(name, None)
