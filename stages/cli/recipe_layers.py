"""Read recipe files, each merged with the recipes that it is based on."""

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from stages.config.errors import UserError
from stages.config.extras import files_of_extras
from stages.config.schema import GROUPS, RECIPES
from stages.store.bounded_yaml import read_yaml_text
from stages.store.plugins import user_path

# The blocks that the options of a group fill, where they do not have the group's name
BLOCKS_OF_GROUPS = {group: [block] for block, group in GROUPS.items()}
BLOCKS_OF_GROUPS |= {"eval": ["answer", "eval"]}
# The keys of Hydra that a recipe may set: others can name code, which Hydra imports even to plan
ALLOWED_HYDRA_KEYS = {
    "hydra.mode",
    "hydra.sweeper.params",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra.sweeper.direction",
}


def recipe_files(*chosen: str) -> dict[str, Path]:
    """Return the recipe files by name: built-in ones, those in recipes/ of the working directory, and the paths in
    `chosen` (`recipe=FILE.yaml`).
    Raise UserError if a chosen name is both a built-in recipe and a different one in recipes/."""
    own = {path.stem: path for path in Path("recipes").glob("*.yaml")}
    built_in = {path.stem: path for path in built_in_recipes()}
    for name in {*chosen} & {*own} & {*built_in}:
        if own[name].read_bytes() != built_in[name].read_bytes():
            problem = f"recipe={name}: a built-in recipe has the name of {own[name]}"
            raise UserError(f"{problem}. Rename the file, or type its path: recipe=./{own[name]}")
    files = own | built_in
    for name in chosen:
        if name.endswith(".yaml"):
            files[name] = user_path(name)
    return files


def built_in_recipes() -> list[Path]:
    """Return the files of the recipes that come with the project, with those of extras."""
    return [*RECIPES.glob("*.yaml"), *files_of_extras("recipes/*.yaml")]


def load_recipes(*chosen: str) -> dict[str, DictConfig]:
    """Return the chosen recipes by name, each merged with the recipes that it is based on. If one cannot be read, or is
    a pattern (`recipe=glob(*)`), return all readable ones."""
    files = recipe_files(*chosen)
    recipes = readable_recipes(chosen, files)
    has_unreadable_or_pattern = len(recipes) < len({*chosen})
    if has_unreadable_or_pattern:
        recipes = readable_recipes(sorted(files), files)
    return recipes


def readable_recipes(names: Iterable[str], files: Mapping[str, Path]) -> dict[str, DictConfig]:
    """Return the readable recipes of these names."""
    recipes: dict[str, DictConfig] = {}
    for name in names:
        recipe = read_with_bases(name, files)
        if recipe is not None:
            recipes[name] = recipe
    return recipes


def read_with_bases(
    name: str, files: Mapping[str, Path], based_on_it: tuple[str, ...] = ()
) -> DictConfig | None:
    """Return a recipe merged with the recipes in its defaults list, in their order; None if it is unreadable, or sets
    what no recipe may set. `based_on_it`: the recipes that are, as no recipe is based on itself."""
    try:
        recipe = load_recipe_file(path_of(name, files))
    except (KeyError, OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(recipe, DictConfig) or forbidden_hydra_keys(recipe):
        return None
    entries = recipe.pop("defaults", None) or []
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    layers = list[DictConfig]()
    groups = list[Any]()
    for entry in entries:
        base = None
        if entry == "_self_":
            base = recipe
        elif isinstance(entry, str) and entry not in (*based_on_it, name):
            base = read_with_bases(entry, files, (*based_on_it, name))
        if base is None:
            groups.append(entry)
        else:
            layers.append(base)
    recipe["defaults"] = groups
    merged, *upper = layers
    for layer in upper:
        merged = lay_over(merged, layer)
    return merged


def path_of(name: str, files: Mapping[str, Path]) -> Path:
    """Return the file of a recipe, which has a name, or is named by its path. Raise KeyError if there is none."""
    if name not in files and name.endswith(".yaml"):
        return user_path(name)
    return files[name]


def load_recipe_file(path: Path) -> DictConfig | ListConfig:
    """Return the content of a recipe file. Raise YAMLError if it is no YAML, or beyond the bounds; ValueError or OSError
    if it cannot be read."""
    return OmegaConf.load(StringIO(read_yaml_text(path)))


def forbidden_hydra_keys(recipe: Any) -> list[str]:
    """Return the keys of Hydra that a recipe sets but must not."""
    hydra = (recipe or {}).get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {}]
    return [key for key in keys if key not in ALLOWED_HYDRA_KEYS]


def lay_over(below: DictConfig, above: DictConfig) -> DictConfig:
    """Return two recipes merged. A group that the upper one names replaces the lower one's blocks of that group."""
    below = below.copy()
    named_above = group_options(above)
    for group in named_above:
        for block in blocks_of_group(group):
            place, _, name = block.rpartition(".")
            holder = OmegaConf.select(below, place) if place else below
            if isinstance(holder, DictConfig):
                holder.pop(name, None)
    defaults = list[Any]()
    for entry in below.get("defaults") or []:
        if named_above.keys().isdisjoint(group_options({"defaults": [entry]})):
            defaults.append(entry)
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    merged["defaults"] = [*defaults, *(above.get("defaults") or [])]
    return merged


def blocks_of_group(group: str) -> list[str]:
    """Return the blocks that the options of a group fill."""
    return BLOCKS_OF_GROUPS.get(group, [group.replace("/", ".")])


def group_options(recipe: Mapping[Any, Any]) -> dict[str, str]:
    """Return the option of each group in a recipe's defaults list."""
    options: dict[str, str] = {}
    for entry in recipe.get("defaults") or []:
        if not isinstance(entry, str):
            for key, option in entry.items():
                options[str(key).removeprefix("override ").lstrip("/")] = option
    return options
