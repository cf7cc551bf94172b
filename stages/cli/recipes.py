"""Register recipes with Hydra, and decide which recipe a command line has.

A recipe applies whole or not at all; what is typed wins, and nothing else moves. Hydra composes a recipe after the
groups, so its keys stand on top of a typed group's option. Without `recipe=`, recipe=demo applies, unless content of
the user's is typed: its values suit its own tasks and its own model."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from stages.cli import value_types
from stages.cli.interpolations import hide_environment
from stages.cli.recipe_layers import group_options, lay_over, load_recipes
from stages.cli.settings import default_options, option_files, package_of
from stages.cli.spelling import is_inside
from stages.config.choices import Align
from stages.config.errors import UserError, begin_errors
from stages.config.schema import CONF, OPTIONS, Config, RunConfig
from stages.config.stage_table import STAGES
from stages.preflight import programs_and_servers, servers
from stages.preflight.programs_and_servers import Reach

DEFAULT = "demo"  # the recipe of conf/config.yaml
NONE = "none"  # the recipe without a key
# The options of the groups that name content which recipe=demo is made for
DEMO_OPTIONS = {
    "model": ["embedded"],
    "data": ["verifiable"],
    "label": ["verifier"],
    "sample": ["hf", "vllm", "generate"],
}
# Other keys that name content of the user's, with the keys below them
USER_CONTENT_KEYS = (
    "model",
    "data.path",
    "data.sources",
    "data.own",
    "label.path",
    "label.own",
    "sample.file",
    "sample.own",
)
# The keys of a recipe that name content of one option of the group, and make a mixture with another option
KEYS_OF_ONE_OPTION = {
    "model": ["model.path", "model.random_init", "model.config"],
    "data": ["data.sources", "data.tasks"],
    "label": ["label.path"],
    "sample": ["sample.file", "sample.pool", "sample.endpoint"],
}
# What a model that has learnt nothing needs at scale=toy, beside conf/scale/toy.yaml: sft=none has no such keys
TOY_SFT = {"learning_rate": 5e-3, "max_dropped": 1.0}
# Preferences in place of a recipe's own, and generated tasks that a tiny model can learn
TOY_PREFERENCES = {"path": "package:stages/tasks/toy_preferences.jsonl", "hub_split": "train"}
TOY_FAMILIES = ["sentiment", "classify_noun", "odd_one_out"]
# The most prompts of a group that a toy's recipe generates. A group that the recipe has none of stays empty.
MOST_TOY_PROMPTS = {
    **{"sft": 256, "preference": 400, "validation": 16, "test": 24, "rephrased": 2},
    **{"unseen_phrasings": 8, "unseen_tasks": 8, "unseen_kinds": 8, "unseen_areas": 4},
    **{"open_sft": 64, "open_preference": 8, "open_validation": 4, "open_test": 8},
    **{"open_plain": 4, "open_lengths": 4},
}


def register(typed: Mapping[str, str]) -> None:
    """Register the recipes of a command line with Hydra, in place of those of an earlier one: `recipe=NAME` is
    `recipes/NAME.yaml`. Raise UserError for a recipe that holds a secret, or a value of another type."""
    register_schema()
    store = ConfigStore.instance()
    store.repo.pop("recipe", None)
    for name, recipe in recipes_of_line(typed).items():
        values = OmegaConf.to_container(recipe)
        servers.refuse_secret(servers.nested_texts(values, ""))
        with begin_errors(f"recipe={name}"):
            value_types.validate_types("", values)
        *folders, file = filter(None, f"recipe/{name}".split("/"))
        store.store(group="/".join(folders), name=file, node=recipe, package="_global_")


@cache
def register_schema() -> None:
    """Register the classes of the configuration and the options of extras with Hydra, and the resolver of `oc.env`,
    once in a process."""
    hide_environment()
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for group, options in OPTIONS.items():
        for option, kind in options.items():
            store.store(group="schema", name=f"{Path(group).name}_{option}", node=kind)
    for group, files in option_files().items():
        for file in files:
            # Hydra finds those of conf/ itself
            if not file.is_relative_to(CONF):
                package = package_of(file) or None
                store.store(file.stem, OmegaConf.load(file), group, package)


def recipes_of_line(typed: Mapping[str, str]) -> dict[str, DictConfig]:
    """Return the recipes by name that this command line may compose, the empty one included, fit to what is typed. Raise
    UserError for a recipe that typed content would make a mixture."""
    names = [name for name in recipe_names(typed) if name != NONE]
    recipes = {NONE: OmegaConf.create()} | load_recipes(*names)
    for name, recipe in recipes.items():
        if name in names:
            refuse_mixture(name, recipe, typed)
        if typed.get("scale") == "toy":
            recipe = lay_over(recipe, toy_layer(recipe, typed))
        recipes[name] = fit_to_typed(recipe, typed)
    return recipes


def refuse_mixture(name: str, recipe: DictConfig, typed: Mapping[str, str]) -> None:
    """Raise UserError if content is typed, and the recipe has keys for other content."""
    for group, content_keys in KEYS_OF_ONE_OPTION.items():
        option = own_option(recipe, group)
        typed_options = {*typed.get(group, option).split(",")}
        present = [key for key in content_keys if OmegaConf.select(recipe, key)]
        argument = f"{group}={min(typed_options - {option}, default=option)}"
        is_mixture = typed_options != {option}
        way_out = f"Leave out recipe={name}"
        if group == "data" and "data.path" in typed and "data.sources" not in typed:
            argument = f"data.path={typed['data.path']}"
            is_mixture = "data.sources" in present
            way_out += ", or type data.sources=[]"
        if present and is_mixture:
            problem = f"{argument}: recipe={name} has {', '.join(present)} for {group}={option}"
            raise UserError(f"{problem}, and a mixture would be neither. {way_out}.")


def fit_to_typed(recipe: DictConfig, typed: Mapping[str, str]) -> DictConfig:
    """Return the recipe without the keys of sampling and SFT that a typed option does not have."""
    fitted = recipe.copy()
    for group in ("sample", "sft"):
        option = typed_option(recipe, group, typed)
        if group in recipe and option != own_option(recipe, group):
            fitted[group] = keys_known_to_option(recipe[group], group, option)
    return fitted


def typed_option(recipe: DictConfig, group: str, typed: Mapping[str, str]) -> str:
    """Return the option of a group that is typed, or the recipe's own: for several in a sweep, or an unknown one."""
    option = typed.get(group, "")
    return option if option in OPTIONS[group] else own_option(recipe, group)


def keys_known_to_option(block: Mapping[Any, Any], group: str, option: str) -> dict[Any, Any]:
    """Return the keys of a block that an option of its group has."""
    names = {field.name for field in fields(OPTIONS[group][option])}
    return {key: value for key, value in block.items() if key in names}


def toy_layer(recipe: DictConfig, typed: Mapping[str, str]) -> DictConfig:
    """Return what scale=toy lays over a recipe: a tiny model, preferences of the package in place of the recipe's own,
    and few generated tasks, unless other data are typed. A recipe for files or models of the user's keeps them."""
    layer: dict[str, Any] = {}
    has_sft = typed_option(recipe, "sft", typed) != "none"
    if has_sft:
        layer["sft"] = TOY_SFT
    # an examination is of two models of the user's
    if own_option(recipe, "model") != "before":
        groups = {"override /model": "tiny"}
        # the tiny model brings no template of its own
        if not has_sft and own_option(recipe, "template") in ("auto", "own"):
            groups["override /template"] = "chatml"
        layer["defaults"] = [{group: option} for group, option in groups.items()]
    if OmegaConf.select(recipe, "label.path"):
        layer["label"] = TOY_PREFERENCES
    if "data" not in typed and own_option(recipe, "data") != "file":
        tasks = {"families": TOY_FAMILIES, **toy_prompt_counts(recipe)}
        layer["data"] = {"sources": [], "tasks": tasks}
    return OmegaConf.create(layer)


def toy_prompt_counts(recipe: DictConfig) -> dict[str, int]:
    """Return the numbers of generated prompts by group: the recipe's own, with a limit. Tasks take the place of
    sources."""
    of_option = settings_of_option("data", own_option(recipe, "data"))
    data: Any = OmegaConf.merge(of_option, recipe.get("data") or {})
    own_counts = data.get("tasks") or {}
    counts = {
        group: min(own_counts.get(group) or 0, most) for group, most in MOST_TOY_PROMPTS.items()
    }
    if data.get("sources"):
        counts |= {group: MOST_TOY_PROMPTS[group] for group in ("sft", "validation")}
    return counts


def settings_of_option(group: str, option: str) -> DictConfig:
    """Return the keys of an option of a group, with those of the option that it is based on."""
    files = {path.stem: path for path in option_files()[group]}
    keys = OmegaConf.load(files[option])
    assert isinstance(keys, DictConfig)
    bases = [entry for entry in keys.pop("defaults", []) if entry in files]
    merged = OmegaConf.merge(*(settings_of_option(group, base) for base in bases), keys)
    assert isinstance(merged, DictConfig)
    return merged


def recipe_names(typed: Mapping[str, str]) -> list[str]:
    """Return the names of the recipes of a command line: several in a sweep."""
    return [name.strip("'\"") for name in typed.get("recipe", DEFAULT).split(",")]


def own_option(recipe: DictConfig, group: str) -> str:
    """Return the option that a recipe names of a group, else the group's default."""
    return group_options(recipe).get(group, default_options()[group])


def recipe_of_job(typed: Mapping[str, str]) -> DictConfig:
    """Return the one recipe of a job: an empty one for `recipe=none`."""
    [name] = recipe_names(typed)
    return OmegaConf.create() if name == NONE else load_recipes(name)[name]


def users_content(typed: Mapping[str, str]) -> str | None:
    """Return the first typed key or option that names content of the user's: data, labels or a model."""
    for key, value in typed.items():
        if value in ("null", "[]"):
            continue
        if key in DEMO_OPTIONS:
            if not {*value.split(",")} <= {*DEMO_OPTIONS[key]}:
                return f"{key}={value}"
        elif any(is_inside(key, block) for block in USER_CONTENT_KEYS):
            return key
    return None


def recipe_in_place_of_default(typed: Mapping[str, str]) -> str | None:
    """Return the recipe of the typed stage, or `none` where content of the user's is typed; None to keep the typed or
    the default recipe."""
    if "recipe" in typed:
        return None
    recipe = recipe_of_stage(typed)
    if recipe:
        return recipe
    return NONE if users_content(typed) else None


def recipe_of_stage(typed: Mapping[str, str]) -> str:
    """Return the recipe of the typed stage, or an empty text."""
    stage = typed.get("stage", "")
    return STAGES[stage].recipe if stage in STAGES else ""


def describe_recipe(typed: Mapping[str, str], untyped_reaches: Sequence[Reach] = ()) -> str:
    """Return the first line of a run: its recipe, or why there is none, and what it names outside of this process."""
    recipe = f"recipe: {DEFAULT}"
    content = users_content(typed)
    if "recipe" in typed:
        recipe = f"recipe: {typed['recipe']}"
    elif recipe_of_stage(typed):
        recipe = f"recipe: {recipe_of_stage(typed)}"
    elif content:
        recipe = f"recipe: none ({content} is typed; recipe={DEFAULT} keeps its settings)"
    if untyped_reaches:
        recipe += f", which names {programs_and_servers.sentence_of(untyped_reaches)}"
    return recipe


def describe_objective(cfg: Config, typed: Mapping[str, str]) -> str:
    """Return what trains the policy, what says so, and which control stands beside it; an empty text without it."""
    if cfg.align in (Align.none, Align.given):
        return ""
    name = typed.get("recipe") or recipe_in_place_of_default(typed) or DEFAULT
    said_by = "the default"
    if "align" in typed:
        said_by = "typed"
    elif "align" in recipe_of_job({"recipe": name}):
        said_by = "of the recipe"
    objective = f"; objective: {cfg.align} ({said_by})"
    if cfg.align not in cfg.controllable:
        return objective
    if cfg.control:
        control = "plain SFT on the chosen answers"
        if cfg.align in cfg.drawing:
            control = cfg.control_of_draws(cfg.align).title.lower()
        return f"{objective} and its control, {control}"
    return f"{objective}, without its control (control=true)"
