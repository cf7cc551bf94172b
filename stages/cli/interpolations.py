"""The interpolations of a configuration, `${KEY}`: which keys have the value of which, and what no value may read."""

import re
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from stages.cli.spelling import is_inside
from stages.config.installation import PROGRAM
from stages.preflight.servers import nested_texts
from stages.store.sealed_json import OUTPUTS

# The environment variables that conf/ reads. They hold a folder, a program and the number of a machine: no secret.
READABLE_VARIABLES = (OUTPUTS, PROGRAM, "SLURM_NODEID")
PLACE_IN_LIST = re.compile(r"\[\d+\]")
# `${dpo.beta}`, or with dots at its start a key beside or around the one that has it
INTERPOLATED_KEY = re.compile(r"\$\{(\.*)([\w.\[\]]+)\}")


def hide_environment() -> None:
    """Let interpolations read no other environment variable than those of conf/: Hydra, logs and pages would show it."""
    OmegaConf.register_new_resolver("oc.env", read_variable, replace=True)


def read_variable(name: str, *default: str | None) -> str | None:
    """Return an environment variable, or the default that an interpolation names. Raise ValueError for a variable that
    conf/ does not read."""
    if name not in READABLE_VARIABLES:
        problem = f"${{oc.env:{name}}} would store and show a value of the environment"
        raise ValueError(f"{problem}. Type the value itself, or for a key api_key_env={name}")
    return oc.env(name, *default)


def interpolated_keys(composed: DictConfig) -> dict[str, list[str]]:
    """Return the keys of a composed configuration that have an interpolation, each with the keys whose values it has.
    The key of a value in a list is that of the list."""
    tree = OmegaConf.to_container(composed, resolve=False)
    keys = dict[str, list[str]]()
    for place, text in nested_texts(tree, ""):
        key = PLACE_IN_LIST.sub("", place)
        block = key.split(".")[:-1]
        for dots, name in INTERPOLATED_KEY.findall(text):
            around = block[: len(block) + 1 - len(dots)] if dots else []
            keys.setdefault(key, []).append(".".join([*around, name]))
    return keys


def keys_with_value_of(source: str, interpolated: Mapping[str, list[str]]) -> list[str]:
    """Return the keys that have the value of this key, directly or through each other."""
    keys = [source]
    for value_key in keys:  # which grows
        for key, names in interpolated.items():
            has_value = any(is_inside(value_key, name) for name in names)
            if has_value and key not in keys:
                keys.append(key)
    return keys[1:]
