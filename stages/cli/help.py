"""`--help`, and `--help=NAME`: a line per option and key of a group or a block."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from itertools import zip_longest
from math import ceil
from typing import Any, NamedTuple

import hydra
from omegaconf import OmegaConf

from stages.cli import recipes, settings
from stages.cli.recipe_layers import blocks_of_group, load_recipes, recipe_files
from stages.cli.settings import settings_of, value_words
from stages.config.blocks.arguments import TrainerArguments
from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint, Price
from stages.config.blocks.evaluation import Compared
from stages.config.blocks.labels import Voter
from stages.config.blocks.sampling import DrawnCandidates, Member, OpenAI
from stages.config.commands import COMMANDS
from stages.config.errors import UserError, suggest
from stages.config.renamed import old_key_message
from stages.config.schema import CONF, OPTIONS, RunConfig
from stages.config.stage_table import STAGES

# Blocks that stand in lists and mappings, the arguments of every trainer, and the keys of all that compare answers
LISTED = {
    "eval.judged": Compared,
    "Endpoint": Endpoint,
    "Member": Member,
    "Price": Price,
    "Source": Source,
    "TrainerArguments": TrainerArguments,
    "Voter": Voter,
}
# Options with keys of their own
OPTIONS_WITH_KEYS = [("data", "verifiable"), ("template", "file"), ("sft", "default")]
OPTIONS_WITH_KEYS += [("sample", "hf"), ("sample", "openai"), ("sample", "file")]
OPTIONS_WITH_KEYS += [("label", option) for option in OPTIONS["label"]]
# Blocks with the keys of another block, which has their meaning
LIKE_ANOTHER = re.compile(
    r"(data\.file|reward\.source)\.(?!path$)|label\.(judge|reward_model|human)\."
)


class Row(NamedTuple):
    """An option of a group, as `sft=none`, or a key."""

    name: str
    kind: str
    default: str
    meaning: str


def usage() -> str:
    """Return the text of `--help`."""
    names_by_group = {"recipe": sorted([recipes.NONE, *recipe_files()])}
    for group, files in settings.option_files().items():
        names_by_group[group] = [path.stem for path in files]
    lines = [f"{group}: {', '.join(names)}" for group, names in sorted(names_by_group.items())]
    options = OmegaConf.load(CONF / "config.yaml").hydra.help
    commands_with_json = list[str]()
    examples = list[str]()
    for name, command in COMMANDS.items():
        if command.prints_json:
            commands_with_json.append(name)
        if command.example:
            examples.append(f"{command.example:50}{options.app_name} stage={name}")
    texts = {
        "$EXAMPLES": "\n".join(examples),
        "$TARGETS": "\n".join(target_lines()),
        "$APP_CONFIG_GROUPS": "\n".join(lines),
        "$COMMANDS_WITH_JSON": ", ".join(commands_with_json),
    }
    template: str = options.template
    for placeholder, text in texts.items():
        template = template.replace(placeholder, text)
    return template


def target_lines() -> list[str]:
    """Return the stages and the commands in two columns, each with its words."""
    words = {name: stage.words for name, stage in STAGES.items()}
    words |= {name: command.words for name, command in COMMANDS.items()}
    cells = [f"{name:10} {text}" for name, text in words.items()]
    rows = ceil(len(cells) / 2)
    width = max(map(len, cells)) + 2
    left, right = cells[:rows], cells[rows:]
    return [f"{a:{width}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]


def block_help(name: str) -> str:
    """Return a line per option and key of a group, block or key. Raise UserError if none has this name."""
    blocks = {name, *blocks_of_group(name)}  # a group may fill other blocks
    names = set[str]()
    lines = list[str]()
    for title, rows in sections():
        names |= {title, *(row.name for row in rows)}
        rows_of_name = [
            row for row in rows if title == name or blocks & {*name_and_blocks_around(row)}
        ]
        if rows_of_name and "=" in title:
            lines.append(f"with {title}:")
        for row in rows_of_name:
            text = "; ".join(filter(None, (row.kind, row.meaning)))
            lines.append(f"{row.name:40} {row.default:24} {text}")
    if not lines:
        problem = f"--help={name}: no group, block or key has this name.{suggest(name, names)}"
        raise UserError(old_key_message(name) or problem)
    return "\n".join(lines)


def name_and_blocks_around(row: Row) -> list[str]:
    """Return the name of a row and of all blocks around it: a.b.c, a.b and a."""
    parts = row.name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def sections() -> Iterator[tuple[str, list[Row]]]:
    """Yield the options of each group; the keys of every run, and those of single options and of listed blocks."""
    for group, files in settings.option_files().items():
        yield (
            group,
            [Row(f"{group}={path.stem}", "", "", settings.first_comment(path)) for path in files],
        )
    yield "every run", config_rows()
    for group, option in OPTIONS_WITH_KEYS:
        yield f"{group}={option}", option_rows(group, option)
    for name, kind in LISTED.items():
        values = flat(OmegaConf.structured(kind), f"{name}.")
        yield name, rows_of(kind, f"{name}.", values, {})


def config_rows() -> list[Row]:
    """Return a row for every key that all runs have."""
    recipes.register({"recipe": recipes.NONE})
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        values = flat(hydra.compose("config", [f"recipe={recipes.NONE}"]))
    return rows_of(RunConfig, "", values, demo_values())


def option_rows(group: str, option: str) -> list[Row]:
    """Return the rows of the keys that only this option of a group has."""
    prefix = f"{settings.block_of(group)}."
    kind = OPTIONS[group][option]
    in_conf = recipes.settings_of_option(group, option)
    values = flat(OmegaConf.merge(OmegaConf.structured(kind), in_conf), prefix)
    is_default = settings.default_options()[group] == option
    rows = rows_of(kind, prefix, values, demo_values() if is_default else {})
    keys_elsewhere = {setting.key for setting in settings_of(RunConfig)}
    if kind is OpenAI:  # all else is said of sample=hf
        keys_elsewhere |= {setting.key for setting in settings_of(DrawnCandidates, prefix)}
    return [row for row in rows if row.name not in keys_elsewhere]


def rows_of(kind: Any, prefix: str, values: dict[str, Any], demo: dict[str, Any]) -> list[Row]:
    """Return a row for every key of a block, with its value, and the demo's if that differs."""
    rows = list[Row]()
    for setting in settings_of(kind, prefix):
        if LIKE_ANOTHER.match(setting.key):
            continue
        value = values.get(setting.key)
        default = value_words(value) if setting.key in values else ""
        if demo.get(setting.key, value) != value:
            default += f"; demo: {value_words(demo[setting.key])}"
        if isinstance(value, dict) and is_dataclass(setting.kind):
            default = ""
        rows.append(Row(setting.key, setting.type_words, default, setting.comment))
    return rows


@cache
def demo_values() -> dict[str, Any]:
    """Return the values of the keys that the default recipe sets."""
    return flat(load_recipes(recipes.DEFAULT)[recipes.DEFAULT])


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of all blocks and keys of a configuration by their whole names."""
    values: dict[str, Any] = {}
    tree: Any = OmegaConf.to_container(config, enum_to_str=True)
    blocks = [(prefix, tree)]
    for block, mapping in blocks:  # which grows by the mappings inside
        for name, value in mapping.items():
            values[f"{block}{name}"] = value
            if isinstance(value, dict):
                blocks.append((f"{block}{name}.", value))
    return values
