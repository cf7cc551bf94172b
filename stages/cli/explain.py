"""Errors of the user's told in one line, with the key, the file and the nearest valid name."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.cli import spelling
from stages.config import trl_arguments
from stages.config.blocks.training import Training
from stages.config.errors import SYNONYMS, UserError, causes, full_disk, nearest, visible
from stages.hardware import process

OF_HYDRA = {"hydra.mode", *(f"hydra.sweeper.{key}" for key in ("params", "n_trials", "n_jobs", "direction"))}
# What OmegaConf says, and how a user would: its words hold the value again, and its own types.
PLAINER = {
    r"Value '.*' of type '[\w$]+'": "the value",
    r"Invalid value '.*',": "Invalid value,",
    r"Invalid value assigned: .* is not a ListConfig.*|Cannot merge DictConfig with ListConfig": "a list is wanted",
    r"Invalid type assigned: .*|field '.*' is not Optional": "it is a block of keys",
    r"Cannot assign \w+ to Dict.*": "a mapping is wanted, {KEY: VALUE}",
    r"Interpolation key '(.*)' not found": r"${\1} names no key",
}
MENDABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
MENDABLE |= {errno.ENAMETOOLONG, errno.ELOOP}


def explain(error: BaseException) -> str | None:
    """One line for what the user can mend, as a terminal may show it; None for a bug, which deserves its traceback."""
    line = reason(error)
    return None if line is None else visible(line)


@contextmanager
def explained() -> Iterator[None]:
    """End the process with one line for what the user can mend."""
    try:
        yield
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        sys.exit(f"error: {line}")


def reason(error: BaseException) -> str | None:
    if line := full_disk(error):
        return line
    chain = list(causes(error))
    where = next((found for e in chain if (found := in_file(e))), "")
    for e in chain:
        if isinstance(e, UserError):
            return str(e)
        if isinstance(e, MissingConfigException):
            return missing_group(e)
        if isinstance(e, OverrideParseException):
            return spelling.unreadable(e)
        if ambiguous := re.match(r"Ambiguous value for argument '(.+)'", str(e)):
            return spelling.several(ambiguous[1])
    told = [e for e in reversed(chain) if isinstance(e, OmegaConfBaseException)]
    if told:  # the innermost that knows its key
        return setting(next((e for e in told if e.full_key), told[0]), where)
    if isinstance(error, PermissionError) and is_unreadable(error.filename):
        return f"{error.filename}: {error.strerror}. Its owner lets others read: chmod -R go+rX FOLDER."
    if isinstance(error, OSError) and (error.errno in MENDABLE or in_making(error)):
        return f"{error.filename}: {error.strerror}. If this is the store: nothing was lost, outputs=FOLDER moves it."
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    return None


def is_unreadable(path: Any) -> bool:
    return isinstance(path, str | os.PathLike) and os.path.exists(path) and not os.access(path, os.R_OK)


def in_making(error: BaseException) -> bool:
    """Whether a folder could not be made, as under /proc. Any other file that is missing may be a bug."""
    return traceback.extract_tb(error.__traceback__)[-1].name == "mkdir"


def in_file(error: BaseException) -> str:
    """`"recipes/x.yaml: "` where Hydra says that it was merging that file; `"dpo.beta=x: "` for an override."""
    if not isinstance(error, ConfigCompositionException):
        return ""
    if override := re.match(r"Error merging override (.+)", str(error)):
        return f"{override[1].lstrip('+')}: "
    if override := re.match(r"Could not override '(.+\W.+)'", str(error)):
        return f"{override[1]}: "
    found = re.match(r"In '(\w+)/(.+?)': ", str(error))
    return f"{place_of(*found.groups())}: " if found else ""


def place_of(group: str, name: str) -> str:
    """Return how a message calls the file of a group's option."""
    folder = "recipes" if group == "recipe" else f"conf/{group}"
    return name if group == "recipe" and name.endswith(".yaml") else f"{folder}/{name}.yaml"


def setting(error: OmegaConfBaseException, where: str = "") -> str:
    """A key that does not exist, with the nearest that does; a value of the wrong type; a missing value. `where`: the
    file or override that it stands in."""
    key = str(error.full_key or error.key or "")
    kind = error.object_type
    if is_dataclass(kind) and error.key is not None and "not in" in str(error):
        place = "" if where == f"{key}: " else where
        return place + no_setting(key, kind)  # type: ignore[arg-type]  # a class, as all types are
    message = str(error).splitlines()[0].removesuffix(".")
    for pattern, plainer in PLAINER.items():
        message = re.sub(pattern, plainer, message)
    form = spelling.right_form(key, where.partition("=")[2].removesuffix(": "))
    if not key and (expression := re.match(r"\$\{.*\}", message)):  # in a sweep OmegaConf does not say whose it is
        key = next((typed for typed in process.typed() if expression[0] in typed), "")
    head = "" if not key or key in message or key.partition("[")[0] in where else f"{key}: "
    return f"{where}{head}{message}.{form}"


def no_setting(key: str, kind: type) -> str:
    """A key that its block does not have: what it may be called there, or which other block has it."""
    name, known = key.rpartition(".")[2], [f.name for f in fields(kind)]
    if issubclass(kind, Training) and name in trl_arguments.allowed(kind.__name__.lower()):
        return f"{key} is no setting. Did you mean {f'{key.removesuffix(name)}trainer.{name}'!r}?"
    others = [other for other in spelling.hints() if other.rpartition(".")[2] == name]
    if others and SYNONYMS.get(name) not in known:
        return f"{key} is no setting. Did you mean {' or '.join(others)}?"
    return f"{key} is no setting.{nearest(name, known)}"


def missing_group(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.partition("/") if missing.startswith("recipe/") else missing.rpartition("/")
    if not group:
        return str(error).splitlines()[0]
    path = spelling.recipe_files(name).get(name) if group == "recipe" else None
    if path and path.is_file():
        if place := yaml_place(path):
            return f"{place_of(group, name)} is not valid YAML{place}."
        keys = ", ".join(foreign(OmegaConf.load(path)))
        return f"{place_of(group, name)} sets {keys}. Of Hydra's keys a recipe may set {', '.join(sorted(OF_HYDRA))}."
    return f"{group}={name} does not exist.{nearest(name, error.options or [])}"


def foreign(recipe: Any) -> list[str]:
    """Hydra's keys that a recipe sets and must not: some name code, which Hydra imports even for a plan."""
    hydra = (recipe or {}).get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {}]
    return [key for key in keys if key not in OF_HYDRA]


def yaml_place(path: Path) -> str:
    """Return why and where a file is not a mapping in YAML; '' for one that is."""
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        return f": line {error.problem_mark.line + 1}, {error.problem}" if error.problem_mark else ""
    except ValueError as error:
        return f": {error}"
    return "" if isinstance(keys, dict) else ": it holds no KEY: VALUE"
