"""Register recipes with Hydra, and decide which recipe a command line has.

A recipe applies whole or not at all; what is typed wins, and nothing else moves. Hydra composes a recipe after the
groups, so its keys stand on top of a typed group's option. Without `recipe=`, recipe=demo applies, unless content of
the user's is typed: its values suit its own tasks and its own model."""

import logging
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from stages.cli.recipe_layers import group_options, load_recipes
from stages.cli.spelling import typed_values
from stages.config.blocks.data import DEFAULT_SHARES
from stages.config.blocks.labels import LABELS, Label
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.config.schema import CONF, OPTIONS, Config, Target
from stages.preflight import servers

log = logging.getLogger(__name__)

DEFAULT, TOY = "demo", "tiny"  # the recipes of conf/config.yaml and of conf/scale/toy.yaml
NONE = "none"  # the recipe without a key
TOY_PREFERENCES = "package:stages/tasks/toy_preferences.jsonl"
# The most prompts of a group that a toy's recipe generates. A group that the recipe has none of stays empty.
TOY_TASKS = {
    **{"sft": 256, "preference": 400, "validation": 16, "test": 24, "rephrased": 2},
    **{"unseen_phrasings": 8, "unseen_tasks": 8, "unseen_kinds": 8, "unseen_areas": 4},
    **{"open_sft": 0, "open_preference": 8, "open_validation": 4, "open_test": 8},
    **{"open_plain": 4, "open_lengths": 4},
}
TOY_SFT: dict[str, Any] = {
    "demonstrations": "given",
    **{"epochs": 3, "batch_size": 2, "runtime": {"micro_batch": 2}},
    **{"max_length": 768, "max_dropped": 1.0},
}
# The options of the groups that name content which recipe=demo is made for
OF_THE_DEMO = {
    "model": ["embedded"],
    "data": ["verifiable"],
    "label": ["verifier"],
    "sample": ["hf", "vllm", "generate"],
}
# Other keys that name content of the user's, with the keys below them
OF_THE_USER = (
    "model",
    "data.path",
    "data.sources",
    "data.own",
    "label.path",
    "label.own",
    "sample.file",
    "sample.own",
)
KEYS_OF_LABELERS = set[str]()
for kind in LABELS.values():
    KEYS_OF_LABELERS |= {key.name for key in fields(kind)}
KEYS_OF_LABELERS -= {key.name for key in fields(Label)}
# The keys of a recipe's block that belong to one option of the group, and make a mixture with another option
OF_ONE_OPTION = {
    "model": ["path", "random_init", "config"],
    "data": ["sources", "tasks"],
    "label": sorted(KEYS_OF_LABELERS),
    "sample": ["file", "columns", "pool", "endpoint", "own"],
}


def register(line: list[str]) -> None:
    """Register the recipes with Hydra, in place of those of an earlier command line: `recipe=NAME` is
    `recipes/NAME.yaml`. Raise UserError if the command line names other content than its recipe."""
    register_schema()
    ConfigStore.instance().repo.pop("recipe", None)
    for name, recipe in {NONE: OmegaConf.create(), **recipes_under(line)}.items():
        servers.refuse_secret(servers.texts_in(OmegaConf.to_container(recipe), ""))
        *folders, file = (part for part in f"recipe/{name}".split("/") if part)
        group = "/".join(folders)
        ConfigStore.instance().store(
            group=group, name=file, node=recipe, package="_global_", provider="recipes"
        )


@cache
def register_schema() -> None:
    """Register the classes of the configuration with Hydra, once in a process."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, options in OPTIONS.items():
        for option, kind in options.items():
            store.store(name=f"{Path(group).name}_{option}", node=kind)


def recipes_under(line: list[str]) -> dict[str, DictConfig]:
    """Return the recipes by name that this command line may compose."""
    typed = typed_values(line)
    chosen = chosen_names(typed)
    is_toy = typed.get("scale") == "toy"
    names = [name for name in ([TOY, *chosen] if is_toy else chosen) if name != NONE]
    recipes = load_recipes(names, all_names=any(word.startswith("-") for word in line))
    for name in chosen:
        if name in recipes:
            refuse_mixture(name, recipes[name], typed)
            if is_toy:
                avoid_bitsandbytes(recipes[name])
                if "data" not in typed:
                    shrink_tasks(recipes[name])
                if "data.path" not in typed:
                    read_toy_preferences(recipes[name])
    for recipe in recipes.values():
        leave_out_keys(recipe, "sample", typed)
        leave_out_keys(recipe, "sft", typed)
    if is_toy and TOY in recipes:
        sft = typed.get("sft") or own_option(recipes.get(chosen[0], recipes[TOY]), "sft")
        recipes[TOY]["sft"] = {**recipes[TOY].get("sft", {}), **TOY_SFT}
        leave_out_keys(recipes[TOY], "sft", {"sft": sft})
    return recipes


def refuse_mixture(name: str, recipe: DictConfig, typed: dict[str, str]) -> None:
    """Raise UserError if an option is typed of a group that names content, and the recipe has keys for another one."""
    has_sources = OmegaConf.select(recipe, "data.sources")
    if has_sources and "data.path" in typed and "data.sources" not in typed:
        problem = f"data.path={typed['data.path']}: recipe={name} has data.sources, and would train on both"
        raise UserError(f"{problem}. Leave out recipe={name}, or type data.sources=[].")
    for group, names in OF_ONE_OPTION.items():
        own = own_option(recipe, group)
        keys = [f"{group}.{key}" for key in names]
        stated = [key for key in keys if OmegaConf.select(recipe, key) is not None]
        others = {*typed.get(group, own).split(",")} - {own}
        if stated and others:
            option = f"{group}={min(others)}"
            problem = f"{option}: recipe={name} has {', '.join(stated)} for {group}={own}"
            ways = f"Leave out recipe={name}, or {option} and type keys of {group}"
            raise UserError(f"{problem}, and a mixture would be neither. {ways}.")


def leave_out_keys(recipe: DictConfig, group: str, typed: dict[str, str]) -> None:
    """Leave out the recipe's keys of a group that the typed option does not have: how candidates are drawn that are in
    a file, or how SFT is trained that is not."""
    kind = OPTIONS[group].get(typed.get(group, ""))
    if kind and group in recipe and typed[group] != own_option(recipe, group):
        known = {key.name for key in fields(kind)}
        recipe[group] = {key: value for key, value in recipe[group].items() if key in known}


def avoid_bitsandbytes(recipe: DictConfig) -> None:
    """Replace a toy's 4-bit adapters, which need bitsandbytes, by LoRA where it is not installed."""
    if find_spec("bitsandbytes") is not None:
        return
    for block in OBJECTIVES:
        if OmegaConf.select(recipe, f"{block}.adapter") == Adapter.qlora:
            recipe[block].adapter = str(Adapter.lora)
            log.warning(
                "warning: %s.adapter=lora is used instead of qlora, which needs bitsandbytes.",
                block,
            )


def read_toy_preferences(recipe: DictConfig) -> None:
    """Replace the preferences of a recipe that reads some."""
    if own_option(recipe, "label") == "dataset":
        recipe["label"] = {"path": TOY_PREFERENCES}


def shrink_tasks(recipe: DictConfig) -> None:
    """Let a recipe generate few prompts. Its sources and the answers that a base model gives to open requests are left
    out, so tasks are generated in their place."""
    of_option = option_keys("data", own_option(recipe, "data"))
    data: Any = OmegaConf.merge(of_option, recipe.get("data") or OmegaConf.create())
    own = data.get("tasks") or {}  # none of data=file
    replaced = set[str]()
    for source in data.get("sources") or []:
        replaced |= {*(source.get("splits") or DEFAULT_SHARES)}
    if own.get("open_sft"):
        replaced.add("sft")
    tasks: dict[str, int] = {}
    for group, most in TOY_TASKS.items():
        count = own.get(group) or 0
        if count == 0 and group in replaced:
            count = most
        tasks[group] = min(count, most)
    OmegaConf.update(recipe, "data.tasks", tasks, force_add=True)


def option_keys(group: str, option: str) -> DictConfig:
    """Return the keys of an option of a group, in conf/, with those of the option that it is based on."""
    keys = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert isinstance(keys, DictConfig)
    names = {path.stem for path in (CONF / group).glob("*.yaml")}
    bases = [entry for entry in keys.pop("defaults", []) if entry in names]
    merged = OmegaConf.merge(*(option_keys(group, base) for base in bases), keys)
    assert isinstance(merged, DictConfig)
    return merged


def chosen_names(typed: dict[str, str]) -> list[str]:
    """Return the names of the recipes of a command line: several in a sweep."""
    return [name.strip("'\"") for name in typed.get("recipe", DEFAULT).split(",")]


def own_option(recipe: DictConfig, group: str) -> str:
    """Return the option that a recipe has of a group that names content, or of `sft`."""
    return group_options(recipe).get(group, OF_THE_DEMO.get(group, ["default"])[0])


def recipe_of_job(typed: dict[str, str]) -> DictConfig:
    """Return the one recipe of a job: an empty one for `recipe=none`."""
    [name] = chosen_names(typed)
    return OmegaConf.create() if name == NONE else load_recipes([name])[name]


def users_content(typed: dict[str, str]) -> str | None:
    """Return the first typed key or option that names content of the user's: data, labels or a model."""
    for key, value in typed.items():
        if value in ("null", "[]"):
            continue
        if key in OF_THE_DEMO:
            if not {*value.split(",")} <= {*OF_THE_DEMO[key]}:
                return f"{key}={value}"
        elif any(f"{key}.".startswith(f"{block}.") for block in OF_THE_USER):
            return key
    return None


def recipe_override(typed: dict[str, str]) -> list[str]:
    """Return the override that leaves the default recipe out, where content of the user's is typed, or that takes the
    recipe of an examination."""
    if typed.get("stage") == Target.examine and "recipe" not in typed:
        return [f"recipe={Target.examine}"]
    return [f"recipe={NONE}"] if "recipe" not in typed and users_content(typed) else []


def describe_recipe(typed: dict[str, str]) -> str:
    """Return the first line of a run: its recipe, and why there is none."""
    if "recipe" in typed:
        return f"recipe: {typed['recipe']}"
    content = users_content(typed)
    if content:
        return f"recipe: none ({content} is typed; recipe={DEFAULT} keeps its settings)"
    return f"recipe: {DEFAULT}"
