"""Errors of the user's told in one line, with the key, the file and the nearest valid name."""

import errno
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.config.errors import UserError, causes, full_disk, nearest
from stages.config.schema import RECIPES

OF_HYDRA = {"hydra.mode", *(f"hydra.sweeper.{key}" for key in ("params", "n_trials", "n_jobs", "direction"))}
MENDABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def explain(error: BaseException) -> str | None:
    """One line for what the user can mend; None for a bug, which deserves its traceback."""
    if line := full_disk(error):
        return line
    chain = list(causes(error))
    where = next((found for e in chain if (found := in_file(e))), "")
    for e in chain:
        if isinstance(e, UserError):
            return str(e)
        if isinstance(e, MissingConfigException):
            return missing_group(e)
    for e in reversed(chain):
        if isinstance(e, OmegaConfBaseException):
            return where + setting(e)
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return f"{error.filename}: {error.strerror}. If this is the store: nothing was lost, outputs=FOLDER moves it."
    if isinstance(error, HydraException):
        return " ".join(str(error).split())
    return None


def in_file(error: BaseException) -> str:
    """`"recipes/x.yaml: "` where Hydra says that it was merging that file; `"dpo.beta=x: "` for an override."""
    if not isinstance(error, ConfigCompositionException):
        return ""
    if override := re.match(r"Error merging override (.+)", str(error)):
        return f"{override[1].lstrip('+')}: "
    found = re.match(r"In '(\w+)/(\w+)'", str(error))
    if not found:
        return ""
    group, name = found.groups()
    return f"recipes/{name}.yaml: " if group == "recipe" else f"conf/{group}/{name}.yaml: "


def setting(error: OmegaConfBaseException) -> str:
    """A key that does not exist, with the nearest that does; a value of the wrong type; a missing value."""
    key = str(error.full_key or error.key or "")
    kind = error.object_type
    if is_dataclass(kind) and error.key is not None and "not in" in str(error):
        return f"{key} is no setting.{nearest(str(error.key), [f.name for f in fields(kind)])}"
    message = str(error).splitlines()[0].removesuffix(".")
    message = message.replace("Value '$VALUE' of type '$VALUE_TYPE'", "the value").replace(" '$VALUE'", "")
    return f"{key}: {message}." if key and key not in message else f"{message}."


def missing_group(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.rpartition("/")
    if not group:
        return str(error).splitlines()[0]
    if group == "recipe" and (RECIPES / f"{name}.yaml").exists():
        if place := yaml_place(RECIPES / f"{name}.yaml"):
            return f"recipes/{name}.yaml is not valid YAML{place}."
        keys = ", ".join(foreign(OmegaConf.load(RECIPES / f"{name}.yaml")))
        return f"recipes/{name}.yaml sets {keys}. Of Hydra's keys a recipe may set {', '.join(sorted(OF_HYDRA))}."
    return f"{group}={name} does not exist.{nearest(name, error.options or [])}"


def foreign(recipe: Any) -> list[str]:
    """Hydra's keys that a recipe sets and must not: some name code, which Hydra imports even for a plan."""
    hydra = (recipe or {}).get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {}]
    return [key for key in keys if key not in OF_HYDRA]


def yaml_place(path: Path) -> str:
    try:
        yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        return f": line {error.problem_mark.line + 1}, {error.problem}" if error.problem_mark else ""
    return ""
