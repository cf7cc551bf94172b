"""Recipes as Hydra is told of them: without what the command line decides.

Hydra composes a recipe after the groups, so its values would win over those of a group that is typed. What is typed is
what happens: under a command line a recipe says nothing about the blocks that typed groups give, and a recipe that
names a group takes nothing of that block from the recipes that it starts from. Learning rates were found for the
recipe's own model; with another they are no higher than the general defaults. What a recipe asks of a score was found
for its own labels, and how long a row may be for its own data: with others the general defaults hold. Typed keys win
by themselves. As it is the recipes that change and not the line, all this holds in every job of a sweep.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.util import find_spec
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from stages.cli.explain import foreign
from stages.cli.spelling import recipe_files
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Adapter
from stages.config.schema import CONF, group_defaults

log = logging.getLogger(__name__)

DEFAULT, TOY = "demo", "tiny"  # the recipes of conf/config.yaml and of conf/scale/toy.yaml
BLOCKS = {
    "template": ["sft.template"],
    "eval": ["answer", "eval"],
    "eval/judged": ["eval.judged"],
}  # of a group, where they are not of its name
TRAINED = [name for name, objective in OBJECTIVES.items() if objective.in_chain]
CHECKS = "verifier"  # the option of `label` whose scores the recipes' pairs.min_score is about
LENGTH = "sft.max_length"  # above which rows are dropped

Recipes = dict[str, DictConfig]


def register(line: list[str]) -> None:
    """Tell Hydra the recipes, in the place of those of any line before."""
    ConfigStore.instance().repo.pop("recipe", None)
    for name, recipe in under(line).items():
        *folders, file = (part for part in f"recipe/{name}".split("/") if part)
        group = "/".join(folders)
        ConfigStore.instance().store(group=group, name=file, node=recipe, package="_global_", provider="recipes")


def under(line: list[str]) -> Recipes:
    """The recipes by name, without what this command line decides. What becomes of their rates is said."""
    typed = overrides(line)
    chosen = [name.strip("'\"") for name in typed.get("recipe", DEFAULT).split(",")]
    toy = typed.get("scale") == "toy"
    recipes = load(chosen)
    if CHECKS not in typed.get("label", CHECKS).split(",") or any(key.startswith("label.own") for key in typed):
        for recipe in recipes.values():
            set_aside(recipe, "pairs.min_score")
    if "data.sources" in typed:
        for recipe in recipes.values():
            if OmegaConf.select(recipe, LENGTH, default=math.inf) < general(LENGTH):
                set_aside(recipe, LENGTH)
    for group in typed.keys() & {folder.name for folder in CONF.iterdir()}:
        for block in BLOCKS.get(group, [group]):
            for recipe in recipes.values():
                set_aside(recipe, block)
    if toy and find_spec("bitsandbytes") is None:
        without_4_bit([recipes[name] for name in chosen if name in recipes])
    owners = [TOY] if toy else chosen  # of the model that would be trained
    if model := other_model(typed, owners, recipes):
        used = [recipes[name] for name in ([TOY, *chosen] if toy else chosen) if name in recipes]
        told = []
        for block in TRAINED:
            rate = no_higher(f"{block}.learning_rate", used)
            if rate is not None and f"{block}.learning_rate" not in typed:
                told.append(f"{block}.learning_rate={rate:g}")
        if told:
            log.warning(
                "warning: recipe=%s's learning rates were found for its own model; with %s: %s. Type them to choose.",
                ",".join(owners),
                model,
                ", ".join(told),
            )
    return recipes


def load(chosen: Sequence[str] = ()) -> Recipes:
    """Return the recipes that can be read, each with all that it starts from."""
    found: Recipes = {}
    for name, path in sorted(recipe_files(*chosen).items()):
        try:
            recipe = OmegaConf.load(path)
        except (OSError, ValueError, yaml.YAMLError):  # gone since it was listed, or not to be read
            continue  # the others stay usable; asked for by name, this one is an error (stages/cli/explain.py)
        if isinstance(recipe, DictConfig) and not foreign(recipe):
            found[name] = recipe
    return {name: whole(name, found) for name in found}


def whole(name: str, recipes: Recipes, within: tuple[str, ...] = ()) -> DictConfig:
    """A recipe as one file: laid over the recipes that it starts from, in the order of its defaults list."""
    recipe, entries = recipes[name], list(recipes[name].get("defaults") or [])
    starts = [entry for entry in entries if isinstance(entry, str) and entry in recipes and entry not in within]
    if not starts:
        return recipe
    own = recipe.copy()
    own["defaults"] = [entry for entry in entries if entry not in (*starts, "_self_")]
    order = [entry for entry in entries if entry in (*starts, "_self_")]
    layers = [own if entry == "_self_" else whole(entry, recipes, (*within, name)) for entry in order]
    return reduce(laid_over, layers if "_self_" in order else [*layers, own])


def laid_over(below: DictConfig, above: DictConfig) -> DictConfig:
    """Two recipes as one. A group that the upper one names gives all its values, as on the command line: of its blocks
    the lower one says nothing."""
    below, named = below.copy(), groups(above)
    for group in named:
        for block in BLOCKS.get(group, [group]):
            set_aside(below, block)
    entries = [
        entry for entry in below.get("defaults") or [] if named.keys().isdisjoint(groups({"defaults": [entry]}))
    ]
    both = OmegaConf.merge(below, above)
    assert isinstance(both, DictConfig)
    both["defaults"] = [*entries, *(above.get("defaults") or [])]
    return both


def groups(recipe: Mapping[Any, Any]) -> dict[str, str]:
    """The options of the groups that a recipe's defaults list names."""
    choices = [entry for entry in recipe.get("defaults") or [] if not isinstance(entry, str)]
    return {str(key).removeprefix("override ").lstrip("/"): option for each in choices for key, option in each.items()}


def overrides(line: list[str]) -> dict[str, str]:
    """The keys and groups that a command line sets, with their values as they are typed."""
    found = (re.fullmatch(r"\+*([\w.]+)=(.*)", argument, re.DOTALL) for argument in line)
    return {match[1]: match[2] for match in found if match}


def set_aside(recipe: DictConfig, key: str) -> Any:
    """Take a key or block out of a recipe; None where it is not there."""
    place, _, name = key.rpartition(".")
    holder = OmegaConf.select(recipe, place) if place else recipe
    return holder.pop(name, None) if isinstance(holder, DictConfig) else None


def other_model(typed: dict[str, str], owners: list[str], recipes: Recipes) -> str | None:
    """What is typed that asks for another model than the recipes' own."""
    for key in ("model", "model.path"):
        value = typed.get(key, "null")
        if value != "null" and any(value != own_model(name, recipes)[key] for name in owners):
            return f"{key}={value}"
    return None


def own_model(name: str, recipes: Recipes) -> dict[str, str | None]:
    group = groups(recipes.get(name, {})).get("model", "embedded")
    return {"model": group, "model.path": OmegaConf.load(CONF / "model" / f"{group}.yaml").path}


def no_higher(key: str, used: list[DictConfig]) -> float | None:
    """Take a rate that is higher than the general default out of recipes, and return what it is then; None where none
    was."""
    default = float(general(key))
    rates = [(recipe, rate) for recipe in used if (rate := OmegaConf.select(recipe, key)) is not None]
    high = [recipe for recipe, rate in rates if rate > default]
    for recipe in high:
        set_aside(recipe, key)
    return next((rate for _, rate in rates if rate <= default), default) if high else None


def general(key: str) -> Any:
    """The value of a trained block's key where no recipe says anything."""
    block, _, name = key.partition(".")
    return OmegaConf.select(group_defaults(block), name)


def without_4_bit(used: list[DictConfig]) -> None:
    """A toy runs anywhere: where bitsandbytes is not installed, its adapters lie on plain weights."""
    for recipe in used:
        for block in TRAINED:
            if OmegaConf.select(recipe, f"{block}.adapter") == Adapter.qlora:
                recipe[block].adapter = str(Adapter.lora)
                log.warning("warning: %s.adapter=lora in place of qlora, which needs bitsandbytes.", block)
