"""Around Hydra: what the command line may look like, what the process needs, and errors told in one line."""

import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages import checks, pipeline
from stages.config.errors import UserError, nearest
from stages.config.schema import RECIPES, Config
from stages.hardware import machine, process
from stages.store.node import Node
from stages.store.store import Store

MENDABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST}


def normalise(argv: list[str]) -> list[str]:
    """`-m` may stand anywhere; TRL's arguments need no plus sign (`sft.trainer.weight_decay=0.1`)."""
    options = [a for a in argv if a in ("-m", "--multirun")]
    rest = [a for a in argv if a not in options]
    return options + [f"++{a}" if re.match(r"(sft|dpo)\.trainer\.[\w.]+=", a) else a for a in rest]


def caches(root: Path) -> None:
    """Keep the libraries' own files under the store. Downloaded models stay in the hub's shared cache."""
    cache = (root / "cache").resolve()
    for variable, name in {
        "HF_DATASETS_CACHE": "datasets",
        "HF_MODULES_CACHE": "modules",
        "MPLCONFIGDIR": "matplotlib",
        "TRACKIO_DIR": "trackio",
    }.items():
        os.environ.setdefault(variable, str(cache / name))


def prepare(composed: DictConfig) -> tuple[Config, Store, dict[str, Node]]:
    """What a composed configuration says: typed and checked, with its artifact store, and as a graph.

    Raises:
        UserError: for what is missing, unknown or cannot work.
    """
    process.prepare()  # a job of a sweep may be a process of its own
    if missing := sorted(OmegaConf.missing_keys(composed)):
        raise UserError(f"{missing[0]} is required and has no value.")
    unknown_keys(composed)
    cfg: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    caches(Path(cfg.outputs))
    checks.refuse(cfg)
    machine.resolve_precision(cfg)
    store = Store(Path(cfg.outputs), cfg.rebuild, since=float(os.environ.get("PLUMBLINE_STARTED", time.time())))
    return cfg, store, pipeline.graph(cfg, store.root / "cache" / "digests.json")


def explain(error: BaseException) -> str | None:
    """One line for what the user can mend; None for a bug, which deserves its traceback."""
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


def unknown_keys(composed: DictConfig, prefix: str = "") -> None:
    """Refuse keys that were added with + or ++ and that no dataclass has: they would be ignored.

    Raises:
        UserError: naming the key and the nearest that exists.
    """
    kind = OmegaConf.get_type(composed)
    known = [f.name for f in fields(kind)] if is_dataclass(kind) else None
    for key, value in composed.items_ex(resolve=False):
        if known is not None and key not in known:
            raise UserError(f"{prefix}{key!s} is no setting.{nearest(str(key), known)}")
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            unknown_keys(value, f"{prefix}{key!s}.")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def in_file(error: BaseException) -> str:
    """`"recipes/x.yaml: "` where Hydra says that it was merging that file; `"dpo.beta=x: "` for an override."""
    if not isinstance(error, ConfigCompositionException):
        return ""
    if override := re.match(r"Error merging override (.+)", str(error)):
        return f"{override[1]}: "
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
        return f"recipes/{name}.yaml is not valid YAML{yaml_place(RECIPES / f'{name}.yaml')}."
    return f"{group}={name} does not exist.{nearest(name, error.options or [])}"


def yaml_place(path: Path) -> str:
    try:
        yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        return f": line {error.problem_mark.line + 1}, {error.problem}" if error.problem_mark else ""
    return ""
