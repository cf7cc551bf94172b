"""Register recipes with Hydra, without the values that the command line overrides.

Hydra composes a recipe after the groups, so the recipe's values would win over a typed group. To let the typed group
win, all blocks of typed groups are removed from the recipes. Some values only suit the recipe's own choices, so the
general defaults replace them: `pairs.min_score` and `dpo.first_difference` with other labels, a shorter
`sft.max_length` with other data, controls without DPO, and rounds with other prompts, labels or objectives. Typed
keys win. Recipes change, not the command line, as sweeps need."""

import logging
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from stages.cli.recipe_layers import BLOCKS, CHECKED, CHECKS, blocks_of, load_recipes, take_out
from stages.cli.spelling import typed_values
from stages.cli.starting_values import TRAINED, set_starting_values
from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.config.schema import CONF, group_defaults
from stages.preflight import servers

log = logging.getLogger(__name__)

DEFAULT, TOY = "demo", "tiny"  # the recipes of conf/config.yaml and of conf/scale/toy.yaml
# What suits several rounds of DPO, or one too short for evaluations, over the recipe's own prompts and checks
ROUNDS = (
    "rounds",
    "sample.prompts_per_round",
    "dpo.evaluations",
    "dpo.trainer",
    "dpo.runtime.samples",
)


def register(line: list[str]) -> None:
    """Register the recipes with Hydra, in place of those of an earlier command line: `recipe=NAME` is
    `recipes/NAME.yaml`, without what this command line overrides."""
    ConfigStore.instance().repo.pop("recipe", None)
    for name, recipe in recipes_under(line).items():
        servers.refuse_secret(servers.texts_in(OmegaConf.to_container(recipe), ""))
        *folders, file = (part for part in f"recipe/{name}".split("/") if part)
        group = "/".join(folders)
        ConfigStore.instance().store(
            group=group, name=file, node=recipe, package="_global_", provider="recipes"
        )


def recipes_under(line: list[str]) -> dict[str, DictConfig]:
    """Return the recipes by name, without the values that this command line overrides. Log lowered learning rates."""
    typed = typed_values(line)
    chosen = [name.strip("'\"") for name in typed.get("recipe", DEFAULT).split(",")]
    toy = typed.get("scale") == "toy"
    recipes = load_recipes(
        [TOY, *chosen] if toy else chosen, all_names=any(word.startswith("-") for word in line)
    )
    groups = typed.keys() & {*BLOCKS, *(folder.name for folder in CONF.iterdir())}
    jobs = [
        (key, typed | {key: v})
        for key in ("align", "label")
        if key in typed
        for v in typed[key].split(",")
    ]
    for name, recipe in recipes.items():
        unsuited = unsuited_keys(recipe, typed)
        differing = [
            key for key, job in jobs if ({*unsuited} ^ {*unsuited_keys(recipe, job)}) - {*typed}
        ]
        if differing and name in chosen:
            problem = f"{differing[0]}={typed[differing[0]]}: other settings of recipe={name} suit each of these"
            raise UserError(f"{problem}. Type a command for each of them.")
        for key in (*unsuited, *blocks_of(groups)):
            take_out(recipe, key)
    if toy and find_spec("bitsandbytes") is None:
        for recipe in (recipes[name] for name in chosen if name in recipes):
            for block in (
                b for b in TRAINED if OmegaConf.select(recipe, f"{b}.adapter") == Adapter.qlora
            ):
                recipe[block].adapter = str(Adapter.lora)
                log.warning(
                    "warning: %s.adapter=lora is used instead of qlora, which needs bitsandbytes.",
                    block,
                )
    for names in ((TOY, name) if toy else (name,) for name in chosen):
        if layers := [recipes[name] for name in names if name in recipes]:
            set_starting_values(names[0], layers, typed)
    return recipes


def unsuited_keys(recipe: DictConfig, typed: dict[str, str]) -> list[str]:
    """Return the keys whose values suit other choices than the typed ones."""
    unchecked = (
        any(key.startswith("label.own") for key in typed) or typed.get("label", CHECKS) != CHECKS
    )
    other_prompts = not typed.keys().isdisjoint({"data", "data.sources", "sample", "sample.file"})
    align = typed.get("align", str(OmegaConf.select(recipe, "align", default="dpo")))
    arms = typed.get("arms", str(OmegaConf.select(recipe, "arms")))
    one_round = "rounds" in recipe and (align != "dpo" or typed.get("dpo.adapter") == "continued")
    unsuited = (
        [*CHECKED] if unchecked else ["dpo.first_difference"] if "dpo.loss_type" in typed else []
    )
    short = "rounds" in recipe or OmegaConf.select(recipe, "dpo.evaluations") == 0
    other = typed.get("scale") == "toy" or unchecked or other_prompts
    unsuited += ROUNDS if one_round or (short and other) else ()
    unsuited += () if "dpo" in align + arms else ("control", "control_pairs")
    if "data.sources" in typed and (length := OmegaConf.select(recipe, "sft.max_length")):
        # SFT drops longer rows
        unsuited += ["sft.max_length"] if length < group_defaults("sft").max_length else ()
    return [key for key in unsuited if OmegaConf.select(recipe, key) is not None]
