"""Register recipes with Hydra, without the values that the command line overrides.

Hydra composes a recipe after the groups, so the recipe's values would win over a typed group. To let the typed group
win, all blocks of typed groups are removed from the recipes. Likewise, a recipe that names a group takes nothing of
its blocks from the recipes that it is based on. Some values only suit the recipe's own choices, so the general
defaults replace them: learning rates above the default with another model, `pairs.min_score` and
`dpo.first_difference` with other labels, a shorter `sft.max_length` with other data, controls without DPO, and rounds
with other prompts, labels or objectives. Typed keys win. Recipes change, not the command line, as sweeps need."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from stages.cli.explain import forbidden_keys
from stages.cli.spelling import recipe_files
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import GROUP_LOSSES, Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.schema import CONF, group_defaults
from stages.hardware.model_shape import ModelShape
from stages.preflight import servers
from stages.preflight.model_files import model_config
from stages.store.sealed_json import Damaged

log = logging.getLogger(__name__)

DEFAULT, TOY = "demo", "tiny"  # the recipes of conf/config.yaml and of conf/scale/toy.yaml
# Blocks of groups that do not have the group's name
BLOCKS = {"template": ["sft.template"], "eval": ["answer", "benchmark", "eval"]}
BLOCKS |= {f"eval/{name}": [f"eval.{name}"] for name in ("judged", "suites")}
STARTED = ("sft", "dpo", "grpo")  # blocks with starting values for another model than the recipe's
# Learning rates and beta of published runs, by objective, adapter and number of parameters
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = read_beside(__file__)
TRAINED = [name for name, objective in OBJECTIVES.items() if objective.in_chain]
CHECKS = "verifier"  # the labeler that the recipes' values of CHECKED were chosen for
CHECKED = ("pairs.min_score", "dpo.first_difference")
LENGTH = "sft.max_length"  # SFT drops longer rows
# What suits several rounds of DPO, or one too short for evaluations, over the recipe's own prompts and checks
ROUNDS = ("rounds", "sample.prompts_per_round", "dpo.evaluations", "dpo.trainer", "dpo.runtime.samples")

MULTIRUN = {"-m", "--multirun"}

Recipes = dict[str, DictConfig]


def register(line: list[str]) -> None:
    """Register the recipes with Hydra, in place of those of an earlier command line."""
    ConfigStore.instance().repo.pop("recipe", None)
    for name, recipe in recipes_under(line).items():
        servers.refuse_secret(servers.texts_in(OmegaConf.to_container(recipe), ""))
        *folders, file = (part for part in f"recipe/{name}".split("/") if part)
        group = "/".join(folders)
        ConfigStore.instance().store(group=group, name=file, node=recipe, package="_global_", provider="recipes")


def recipes_under(line: list[str]) -> Recipes:
    """Return the recipes by name, without the values that this command line overrides. Log lowered learning rates."""
    typed = typed_values(line)
    chosen = [name.strip("'\"") for name in typed.get("recipe", DEFAULT).split(",")]
    toy = typed.get("scale") == "toy"
    recipes = load_recipes([TOY, *chosen] if toy else chosen, all_names=any(word.startswith("-") for word in line))
    groups = typed.keys() & {*BLOCKS, *(folder.name for folder in CONF.iterdir())}
    jobs = [(key, typed | {key: v}) for key in ("align", "label") if key in typed for v in typed[key].split(",")]
    for name, recipe in recipes.items():
        unsuited = unsuited_keys(recipe, typed)
        differing = [key for key, job in jobs if ({*unsuited} ^ {*unsuited_keys(recipe, job)}) - {*typed}]
        if differing and name in chosen:
            problem = f"{differing[0]}={typed[differing[0]]}: other settings of recipe={name} suit each of these"
            raise UserError(f"{problem}. Type a command for each of them.")
        for key in (*unsuited, *blocks_of(groups)):
            take_out(recipe, key)
    if toy and find_spec("bitsandbytes") is None:
        for recipe in (recipes[name] for name in chosen if name in recipes):
            for block in TRAINED:
                if OmegaConf.select(recipe, f"{block}.adapter") == Adapter.qlora:
                    recipe[block].adapter = str(Adapter.lora)
                    log.warning("warning: %s.adapter=lora is used instead of qlora, which needs bitsandbytes.", block)
    owners = [TOY] if toy else chosen  # recipes whose model would be trained
    if model := other_model_typed(typed, owners, recipes):
        used = [recipes[name] for name in ([TOY, *chosen] if toy else chosen) if name in recipes]
        parameters = count_parameters(typed.get("model", ""), typed.get("model.path", ""))
        if changes := [each for block in STARTED if (each := start_block(block, typed, used, parameters))]:
            text = "warning: recipe=%s's learning rates suit its own model; with %s: %s. Type others to choose."
            log.warning(text, ",".join(owners), model, ", ".join(changes))
        return recipes
    for name in owners:
        if text := start_unstated(recipes.get(name, DictConfig({})), typed):
            log.warning("warning: recipe=%s gives no value of its own: %s. Type others to choose.", name, text)
    return recipes


def unsuited_keys(recipe: DictConfig, typed: dict[str, str]) -> list[str]:
    """Return the keys whose values suit other choices than the typed ones."""
    unchecked = any(key.startswith("label.own") for key in typed) or typed.get("label", CHECKS) != CHECKS
    other_prompts = not typed.keys().isdisjoint({"data", "data.sources", "sample", "sample.file"})
    align = typed.get("align", str(OmegaConf.select(recipe, "align", default="dpo")))
    arms = typed.get("arms", str(OmegaConf.select(recipe, "arms")))
    one_round = "rounds" in recipe and (align != "dpo" or typed.get("dpo.adapter") == "continued")
    unsuited = [*CHECKED] if unchecked else ["dpo.first_difference"] if "dpo.loss_type" in typed else []
    short = "rounds" in recipe or OmegaConf.select(recipe, "dpo.evaluations") == 0
    other = typed.get("scale") == "toy" or unchecked or other_prompts
    unsuited += ROUNDS if one_round or (short and other) else ()
    unsuited += () if "dpo" in align + arms else ("control", "control_pairs")
    if "data.sources" in typed and OmegaConf.select(recipe, LENGTH, default=math.inf) < default_value(LENGTH):
        unsuited.append(LENGTH)
    return [key for key in unsuited if OmegaConf.select(recipe, key) is not None]


def start_unstated(recipe: DictConfig, typed: dict[str, str]) -> str:
    """Set starting values where a recipe for a model of its own gives no learning rate. Return the changes as text."""
    groups, path = group_options(recipe), OmegaConf.select(recipe, "model.path")
    blocks = [each for each in STARTED if OmegaConf.select(recipe, f"{each}.learning_rate") is None]
    if not blocks or not (path or "model" in groups):
        return ""
    parameters = count_parameters(groups.get("model", ""), path or "")
    texts = [start_block(each, typed, [recipe], parameters) for each in blocks if each not in groups]
    return ", ".join(filter(None, texts))


def start_block(block: str, typed: dict[str, str], used: list[DictConfig], parameters: int | None) -> str:
    """Set the starting values of a block in the recipes, for a model of so many parameters. Return the changes as
    text, which names their source if the size is known; '' if nothing changes that this run reads."""
    if block in typed:  # a typed group gives all values
        return ""

    def stated(key: str, default: str) -> str:
        values = [typed.get(f"{block}.{key}"), *(OmegaConf.select(recipe, f"{block}.{key}") for recipe in used)]
        return str(next((value for value in values if value is not None), default))

    row = starting_values(block, stated("adapter", Adapter.none), parameters) if parameters else {}
    changes, rate_key, beta_key = list[str](), f"{block}.learning_rate", f"{block}.beta"
    rate = cap_rate(rate_key, used, row.get("learning_rate", math.inf))
    if rate is not None and rate_key not in typed:
        changes.append(f"{rate_key}={rate:g}")
    if block == "sft" and row:  # the control is SFT, too
        cap_rate("control_learning_rate", used, row["learning_rate"])
    fits = {*re.findall(r"\w+", stated("loss_type", "sigmoid"))} <= {"sigmoid", "sft", *GROUP_LOSSES}
    if "beta" in row and fits and not stated("beta", ""):  # other losses of DPO have betas of another size
        OmegaConf.update(used[0], beta_key, row["beta"], force_add=True)
        changes.append(f"{beta_key}={row['beta']:g}")
    is_read = block in TRAINED or any(block in typed.get(key, "") for key in ("align", "arms", "stage"))
    if not changes or not is_read:
        return ""
    return ", ".join(changes) + (f" ({row['source']})" if row else "")


def load_recipes(chosen: Sequence[str], all_names: bool = False) -> Recipes:
    """Return the chosen recipes by name, each merged with the recipes that it is based on. With `all_names`, or if a
    chosen one cannot be read or is a pattern (`recipe=glob(*)`), all readable ones are returned."""
    files = recipe_files(*chosen)
    names = sorted(files) if all_names else [name for name in chosen if name in files]
    recipes = {name: recipe for name in names if (recipe := read_recipe(name, files)) is not None}
    return recipes if all_names or recipes.keys() >= {*chosen} else load_recipes(chosen, all_names=True)


def read_recipe(name: str, files: Mapping[str, Path], below: tuple[str, ...] = ()) -> DictConfig | None:
    """Return a recipe merged with the recipes in its defaults list, in their order; None if it is unreadable."""
    try:
        recipe = OmegaConf.load(files[name])
    except (OSError, ValueError, yaml.YAMLError):  # deleted since it was listed, or unreadable
        return None  # only an error if it is chosen by name (stages/cli/explain.py)
    if not isinstance(recipe, DictConfig) or forbidden_keys(recipe):
        return None
    entries, above = list(recipe.get("defaults") or []), (*below, name)
    names = [entry for entry in entries if isinstance(entry, str) and entry in files and entry not in above]
    bases = {entry: base for entry in names if (base := read_recipe(entry, files, above)) is not None}
    if not bases:
        return recipe
    recipe["defaults"] = [entry for entry in entries if entry not in (*bases, "_self_")]
    layers = [recipe if entry == "_self_" else bases[entry] for entry in entries if entry in (*bases, "_self_")]
    return reduce(lay_over, layers if "_self_" in entries else [*layers, recipe])


def lay_over(below: DictConfig, above: DictConfig) -> DictConfig:
    """Return two recipes merged. A group that the upper one names replaces the lower one's blocks of that group."""
    below, named = below.copy(), group_options(above)
    for block in (*blocks_of(named), *(CHECKED if named.get("label", CHECKS) != CHECKS else ())):
        take_out(below, block)
    lower = below.get("defaults") or []
    entries = [entry for entry in lower if named.keys().isdisjoint(group_options({"defaults": [entry]}))]
    merged = OmegaConf.merge(below, above)
    assert isinstance(merged, DictConfig)
    merged["defaults"] = [*entries, *(above.get("defaults") or [])]
    return merged


def group_options(recipe: Mapping[Any, Any]) -> dict[str, str]:
    """Return the option of each group in a recipe's defaults list."""
    choices = [entry for entry in recipe.get("defaults") or [] if not isinstance(entry, str)]
    return {str(key).removeprefix("override ").lstrip("/"): option for each in choices for key, option in each.items()}


def blocks_of(groups: Iterable[str]) -> list[str]:
    """Return the blocks of groups, most of which have the group's name."""
    return [block for group in groups for block in BLOCKS.get(group, [group])]


def typed_values(line: list[str]) -> dict[str, str]:
    """Return the keys and groups that a command line sets, with their values as typed."""
    matches = (re.fullmatch(r"\+*([\w./]+)=(.*)", argument, re.DOTALL) for argument in line)
    return {match[1]: match[2] for match in matches if match}


def take_out(recipe: DictConfig, key: str) -> Any:
    """Remove a key or block from a recipe, and return its value, or None if it was not there."""
    place, _, name = key.rpartition(".")
    holder = OmegaConf.select(recipe, place) if place else recipe
    return holder.pop(name, None) if isinstance(holder, DictConfig) else None


def other_model_typed(typed: dict[str, str], owners: list[str], recipes: Recipes) -> str | None:
    """Return the typed argument that selects another model than the recipes do, or None."""
    for key in ("model", "model.path"):
        value = typed.get(key, "null")
        if value != "null" and any(value != recipe_model(name, recipes)[key] for name in owners):
            return f"{key}={value}"
    return None


def recipe_model(name: str, recipes: Recipes) -> dict[str, str | None]:
    group = group_options(recipes.get(name, {})).get("model", "embedded")
    return {"model": group, "model.path": OmegaConf.load(CONF / "model" / f"{group}.yaml").path}


def cap_rate(key: str, used: list[DictConfig], most: float) -> float | None:
    """Remove higher learning rates than `most` from recipes, and set it if the general default is higher too. An
    infinite `most` stands for that default. Return the rate that then holds, if anything changed."""
    default = float(default_value(key))
    most = default if most == math.inf else most
    rates = [(recipe, rate) for recipe in used if (rate := OmegaConf.select(recipe, key)) is not None]
    high, low = [recipe for recipe, rate in rates if rate > most], [rate for _, rate in rates if rate <= most]
    for recipe in high:
        take_out(recipe, key)
    if not low and most < default:
        OmegaConf.update(used[0], key, most, force_add=True)
    return next(iter(low), min(most, default)) if high or (not low and most < default) else None


def default_value(key: str) -> Any:
    """Return the default, without a recipe, of a trained block's key or of a key outside of blocks."""
    block, _, name = key.rpartition(".")
    return OmegaConf.select(group_defaults(block) if block else OmegaConf.load(CONF / "config.yaml"), name)


def starting_values(objective: str, adapter: str, parameters: int) -> dict[str, Any]:
    """Return the row of the table: `learning_rate` (the most), perhaps `beta`, and the `source` of both."""
    rows = ROWS[objective]["none" if adapter == Adapter.none else "lora"]
    return next(row for row in rows if parameters < 1e9 * row["below"])


def count_parameters(model: str, path: str) -> int | None:
    """Return the parameters of the model at a path (a folder or a hub id) or, without a path, of an option of `model`.
    Return None if the model cannot be read, or the hub cannot be reached."""
    option = CONF / "model" / f"{model}.yaml"
    group = DictConfig(OmegaConf.load(option) if option.is_file() and not path else {})
    try:
        config = model_config(Model(path or group.get("path"), None, config=dict(group.get("config") or {})))
    except (OSError, ValueError, Damaged, UserError):
        return None
    shape = ModelShape.from_config(config) if config else None
    return shape.parameters if shape else None
