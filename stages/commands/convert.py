"""`stage=convert`: read a training file of TRL, axolotl or LLaMA-Factory, and print a command with its settings.

Settings without a counterpart are listed with the reason. Nothing is built."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.commands.conversion import (
    TRL,
    Conversion,
    Heading,
    Settings,
    convert,
    load_table,
)
from stages.config.blocks.training import WITH_TRL
from stages.config.errors import UserError, require_known, visible
from stages.config.installation import program
from stages.config.schema import Config
from stages.store.plugins import user_path
from stages.store.sealed_json import WRONG_SHAPE

FRAMEWORKS = ("axolotl", "llama_factory", "trl")  # TRL last: its keys are in the others' files, too
STAGES = {"rm": "reward", "ipo": "dpo"}  # words of others for a stage
# text that needs no quotes
PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z_./][\w./@+-]*", re.ASCII)


def run(cfg: Config, *_: object) -> None:
    """Print the command for a training file, its defaults that differ from ours, and what has no counterpart.
    Raise UserError if the file is not the YAML of a training."""
    where = f"convert.file={cfg.convert.file}"
    if not cfg.convert.file:
        raise UserError(f"{where}: there is none. Type convert.file=FILE, the YAML of a training.")
    path = user_path(cfg.convert.file)
    settings = read_settings(path, where)
    framework = detect_framework(settings, where)
    stage = cfg.convert.stage or detect_stage(settings, framework, where)
    table = load_table(framework)
    this = Conversion(stage, table, cfg.convert.processes, path.resolve().parent)
    try:
        convert(this, settings)
    except WRONG_SHAPE as error:
        problem = (
            f"{where}: {framework} reads another kind of value ({type(error).__name__}: {error})"
        )
        raise UserError(f"{problem}. Correct it, or leave it out.") from error
    words = [*program(), f"stage={stage}"]
    for key, value in this.overrides.items():
        words.append(f"{key.replace('STAGE', stage)}={spell(value)}")
    lines = [f"{cfg.convert.file}: {stage}, by the keys of {table['title']}", "", shlex.join(words)]
    for heading in Heading:
        if heading in this.remarks:
            lines += ["", f"{heading}:", *(f"  {remark}" for remark in this.remarks[heading])]
    sys.stdout.write(visible("\n".join([*lines, ""]), keep="\n"))


def read_settings(path: Path, where: str) -> Settings:
    """Return the settings in a YAML file. OmegaConf refuses a key that stands twice, and reads 1e-4 as a number."""
    try:
        settings = OmegaConf.create(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: {reason}. Correct the file, or name another.") from error
    if not isinstance(settings, DictConfig):
        raise UserError(f"{where}: there is no KEY: VALUE at its top level. Name another file.")
    container: Settings = OmegaConf.to_container(settings)  # type: ignore[assignment]  # of a mapping
    return {str(key): value for key, value in container.items()}


def detect_framework(settings: Mapping[str, Any], where: str) -> str:
    """Return the first framework of which the file has two typical keys."""
    for name in FRAMEWORKS:
        if len(settings.keys() & {*load_table(name)["typical"]}) > 1:
            return name
    raise UserError(
        f"{where}: this configures no training of TRL, axolotl or LLaMA-Factory. Name another file."
    )


def detect_stage(settings: Mapping[str, Any], framework: str, where: str) -> str:
    """Return the stage: as the file names it, or by the keys that only one of TRL's trainers has."""
    if framework == "trl":
        marks = {*settings, f"loss_type={settings.get('loss_type')}"}
        stages = [name for name, keys in TRL["tells"].items() if marks & {*keys}]
    elif settings.get("reward_model") is True:
        stages = ["reward"]
    else:
        method = str(settings.get("rl") or settings.get("stage") or "sft")
        stages = [STAGES.get(method, method)]
    require_known(f"{where}: training", stages, WITH_TRL)
    if len(stages) != 1:
        choices = "|".join(WITH_TRL)
        raise UserError(f"{where}: it is open what this trains. Type convert.stage={choices}.")
    return stages[0]


def spell(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, Mapping):
        entries = [f"{key}: {spell(each)}" for key, each in value.items()]
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(spell, value))}]"
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)
