"""The configuration that every command composes, as its differences from the default's: recipes, documented commands and
recipes of users."""

import json
import shlex
from contextlib import chdir

from omegaconf import DictConfig

from stages.cli.recipe_layers import built_in_recipes
from stages.config.installation import ROOT
from tests.docs.test_pages import RUNS, one_of_each
from tests.goldens import users
from tests.goldens.names import refused_key
from tests.goldens.records import Commands, changes
from tests.helpers import composed, settings_by_key

DEFAULT = ""  # the command without an override, whose value is the whole configuration
REFUSED = "refused"


def recipe_commands() -> list[str]:
    """Return the lines of all recipes: ours by name, the examples by path, and those of users."""
    names = [f"recipe={name}" for name in sorted(path.stem for path in built_in_recipes())]
    examples = [f"recipe={path}" for path in users.EXAMPLES]
    return [*names, *examples, *users.LINES]


def commands() -> list[str]:
    """Return the lines of all recipes and of the documentation, the default first."""
    return [*dict.fromkeys([DEFAULT, *recipe_commands(), *RUNS])]


def measure(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return by line the keys whose values are not the default's. The default line has all keys."""
    default = resolve(DEFAULT)
    values = dict[str, dict[str, str]]()
    for line in lines:
        values[line] = keys = resolve(line)
        if line != DEFAULT and REFUSED not in keys:
            values[line] = changes(keys, default)
    return values


def compose_first_job(line: str) -> DictConfig:
    """Return what a line composes, of a sweep the first job. The settings of Hydra are left out, since a page may name a
    launcher or a sweeper that is not installed."""
    overrides = one_of_each(shlex.split(line))
    with chdir(users.folder_of(line)):
        return composed(*(each for each in overrides if not each.startswith("hydra")))


def resolve(line: str) -> dict[str, str]:
    """Return every key of a line's configuration with its value as JSON; the refused key if the line is refused."""
    try:
        cfg = compose_first_job(line)
    except Exception as error:
        return {REFUSED: refused_key(error)}
    cfg.outputs = "outputs"
    return {
        key: json.dumps(value, default=str).replace(str(ROOT), ".")
        for key, value in settings_by_key(cfg).items()
    }


PART = Commands("configurations", commands, measure)
