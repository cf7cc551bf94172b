"""Settings that name a program, code or a server, so that a person is told of those that nobody typed.

Those of a recipe stand in the first line of a run, before any of them is used. Those in the command that a manifest
records stand beside this command, which is only shown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.errors import shortened
from stages.preflight.servers import nested_texts

# By the name of a key, in any block: what its value is
KINDS = {
    "python": "a program that is run",
    "own": "code that is run",
    "tasks_dir": "a folder whose tasks may run code",
    "base_url": "a server that is asked",
    "api_key_env": "a variable whose key is sent",
    "remote": "a store that nodes are sent to",
    "address": "a cluster that is joined",
    "rendezvous": "a machine that is joined",
    "repo": "a repository that is pushed to",
    "entity": "an account that runs are sent to",
    "hydra": "a part of Hydra, which may be code",
}
NAMES = re.compile(rf"\b({'|'.join(KINDS)})\b")
ENVIRONMENT = "oc.env"  # OmegaConf's resolver of environment variables
READS_ENVIRONMENT = "a variable of the environment that is read"
ENVIRONMENT_IN_CONF = ("outputs", "launch.node_rank")  # conf/ itself reads it there
LONGEST = 200  # characters of a setting in a message


@dataclass(frozen=True)
class Reach:
    """A setting that reaches outside of this process. `kind`: what its value is. `text`: the setting as a message shows
    it. `value`: with resolved interpolations, so perhaps a secret."""

    kind: str
    text: str
    value: str = ""

    @property
    def is_program(self) -> bool:
        return self.kind == KINDS["python"]


def untyped_reaches(values: Any, as_written: Any, typed: Mapping[str, str]) -> list[Reach]:
    """Return the settings that reach outside and that the command line does not have. `values`: the configuration.
    `as_written`: the same one with its interpolations."""
    written = dict(nested_texts(as_written, ""))
    reaches = list[Reach]()
    for key, value in nested_texts(values, ""):
        text = written.get(key, "(an interpolation)")
        kind = kind_of(key)
        if ENVIRONMENT in text and key not in ENVIRONMENT_IN_CONF:
            kind = kind or READS_ENVIRONMENT
        if kind and not is_typed(key, value, typed):
            reaches.append(Reach(kind, shortened(f"{key}={text}", LONGEST), value))
    return reaches


def kind_of(key: str) -> str:
    """Return what the value of a key is, or '' if it names no program, code or server."""
    *blocks, name = key.split(".")
    is_of_own_part = blocks[-1:] == ["own"]
    if is_of_own_part:
        name = "own" if name == "file" else ""
    return KINDS.get(name, "")


def is_typed(key: str, value: str, typed: Mapping[str, str]) -> bool:
    """Return whether the command line gives a key this value, alone or with its block."""
    plain_key = re.sub(r"\[\d+\]", "", key)
    for typed_key, text in typed.items():
        is_around = f"{plain_key}.".startswith(f"{typed_key}.")
        if is_around and value in text:
            return True
    return False


def recorded_reaches(settings: Sequence[str]) -> list[Reach]:
    """Return the recorded settings, each KEY=VALUE, that may reach outside. They are not composed, so a name counts
    wherever it stands in them. The file of a recipe may name anything."""
    reaches = list[Reach]()
    for setting in settings:
        names = dict.fromkeys(NAMES.findall(setting))
        kinds = [KINDS[name] for name in names]
        if setting.startswith("recipe=") and ".yaml" in setting:
            kinds.append("a file that may name any")
        if kinds:
            reaches.append(Reach(" and ".join(kinds), shortened(setting, LONGEST)))
    return reaches


def sentence_of(reaches: Sequence[Reach]) -> str:
    """Return settings with their kinds as text: `KEY=VALUE (KIND), …`."""
    return ", ".join(f"{reach.text} ({reach.kind})" for reach in reaches)
