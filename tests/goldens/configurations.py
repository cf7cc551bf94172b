"""The configuration that every recipe and every documented command composes, as its differences from the default."""

import json
import shlex
from collections.abc import Iterable

from hydra.errors import HydraException

from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.config.schema import RECIPES
from tests.docs.test_pages import RUNS, one_of_each
from tests.helpers import composed, settings_by_key

DEFAULT = ""  # the command without an override, whose value is the whole configuration


def commands() -> list[str]:
    """Return the lines of all recipes and of the documentation that compose here, the default first."""
    recipes = [f"recipe={path.stem}" for path in sorted(RECIPES.glob("*.yaml"))]
    return [line for line in dict.fromkeys([DEFAULT, *recipes, *RUNS]) if resolve(line)]


def measure(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return by line the keys whose values are not the default's. The default line has all keys."""
    default = resolve(DEFAULT)
    values = {line: changes(resolve(line), default) for line in lines}
    return values | {DEFAULT: default}


def changes(keys: dict[str, str], default: dict[str, str]) -> dict[str, str]:
    """Return the values that differ, and `absent` for a key that the default alone has."""
    if not keys:
        return {"": "does not compose"}
    return {
        key: keys.get(key, "absent")
        for key in sorted(keys.keys() | default.keys())
        if keys.get(key) != default.get(key)
    }


def resolve(line: str) -> dict[str, str]:
    """Return every key of a configuration with its value as JSON: of a sweep's first job, and of no line that is
    refused."""
    try:
        cfg = composed(*one_of_each(shlex.split(line)))
    except (HydraException, UserError):  # a page may show a sweeper that is not installed
        return {}
    cfg.outputs = "outputs"
    return {
        key: json.dumps(value, default=str).replace(str(ROOT), ".")
        for key, value in settings_by_key(cfg).items()
    }
