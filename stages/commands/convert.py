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
    HEADINGS,
    Conversion,
    Settings,
    convert,
    load_table,
    trl_fields,
)
from stages.config.blocks.training import WITH_TRL
from stages.config.errors import UserError, require_known, visible
from stages.config.installation import program
from stages.config.schema import Config
from stages.preflight.arguments import required_type
from stages.store.plugins import user_path
from stages.store.sealed_json import WRONG_SHAPE

FRAMEWORKS = ("axolotl", "llama_factory", "trl")  # TRL last: its keys are in the others' files, too
STAGES = {"rm": "reward", "ipo": "dpo"}  # words of others for a stage
# text that needs no quotes
PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z_./][\w./@+-]*", re.ASCII)


def run(cfg: Config, *_: object) -> None:
    """Print the command for a training file, its defaults that differ from ours, and what has no counterpart.
    Raise UserError if the file is not the YAML of a training, or a value has the wrong type."""
    where = f"convert.file={cfg.convert.file}"
    if not cfg.convert.file:
        raise UserError(
            "convert.file=null: there is no file. Type convert.file=FILE, the YAML of a training."
        )
    path = user_path(cfg.convert.file)
    settings = read_settings(path, where)
    framework = detect_framework(settings, where)
    stage = cfg.convert.stage or detect_stage(settings, framework, where)
    this = Conversion(stage, framework, vars(cfg)[stage], cfg.convert.processes, path)
    try:
        translate(this, settings, where)
    except WRONG_SHAPE as error:
        problem = f"{where}: a setting is not of the kind that {framework} reads ({type(error).__name__}: {error})"
        raise UserError(f"{problem}. Correct it, or leave it out.") from error
    line = [f"{key}={spell(value)}" for key, value in this.overrides.items()]
    typed = shlex.join([*program(), f"stage={stage}", *line])
    title = load_table(framework)["title"]
    sys.stdout.write(f"{cfg.convert.file}: {stage}, by the keys of {title}\n\n{typed}\n")
    for kind, heading in HEADINGS.items():
        lines = [
            f"  {': '.join(filter(None, (', '.join(each), why)))}"
            for why, each in this.remarks[kind].items()
        ]
        if lines:
            sys.stdout.write(visible("\n".join(["", f"{heading}:", *lines, ""]), keep="\n"))


def translate(this: Conversion, settings: Settings, where: str) -> None:
    """Translate the settings of a file. Raise UserError for a value of another type than its key has in TRL."""
    this.rename(settings)
    known = trl_fields("model") | trl_fields(this.stage)
    for name, key in this.names.items():
        value = this.settings[name]
        if name in known and value != "auto" and (kind := required_type(known[name].type, value)):
            place = f"{where}: line {line_of(this.file, key)}, {key}={this.settings[name]}"
            raise UserError(f"{place}: the value must be {kind}. Correct the file.")
    convert(this)


def read_settings(path: Path, where: str) -> Settings:
    """Return the settings in a YAML file. OmegaConf refuses a key that stands twice, and reads 1e-4 as a number."""
    try:
        settings = OmegaConf.create(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the file is not text in UTF-8"
        raise UserError(f"{where}: {reason}. Name the YAML of a training.") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or error
        place = f"line {mark.line + 1}, " if mark else ""
        raise UserError(f"{where}: {place}not valid YAML: {problem}. Correct the file.") from error
    if not isinstance(settings, DictConfig):
        raise UserError(
            f"{where}: the file has no KEY: VALUE at its top level. Name the YAML of a training."
        )
    container: Settings = OmegaConf.to_container(settings)  # type: ignore[assignment]  # of a mapping
    return {str(key): value for key, value in container.items()}


def detect_framework(settings: Mapping[str, Any], where: str) -> str:
    """Return the first framework of which the file has two typical keys."""
    trl = [key for name in ("model", *WITH_TRL) for key in trl_fields(name)]
    for name in FRAMEWORKS:
        if len(settings.keys() & {*load_table(name).get("typical", trl)}) > 1:
            return name
    raise UserError(
        f"{where}: this does not configure a training of TRL, axolotl or LLaMA-Factory. Name such a file."
    )


def detect_stage(settings: Mapping[str, Any], framework: str, where: str) -> str:
    """Return the stage: as the file names it, or by the keys that only one of TRL's trainers has."""
    if framework != "trl":
        default = "rm" if settings.get("reward_model") is True else "sft"
        method = str(settings.get("rl") or settings.get("stage") or default)
        require_known(f"{where}: training", [STAGES.get(method, method)], WITH_TRL)
        return STAGES.get(method, method)
    marks = {*settings, f"loss_type={settings.get('loss_type')}"}
    stages = [name for name, keys in load_table("trl")["tells"].items() if marks & {*keys}]
    require_known(f"{where}: training", stages, WITH_TRL)
    if len(stages) != 1:
        raise UserError(
            f"{where}: the file does not tell what it trains. Type convert.stage={'|'.join(WITH_TRL)}."
        )
    return stages[0]


def line_of(path: Path, key: str) -> int:
    """Return the number of the line in which a key stands at the top level."""
    root = yaml.compose(path.read_text(encoding="utf-8"))
    return next(node.start_mark.line + 1 for node, _ in root.value if node.value == key)


def spell(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {spell(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(spell, value))}]"
    return (
        str(value)
        if isinstance(value, str) and PLAIN.fullmatch(value)
        else json.dumps(value, ensure_ascii=False)
    )
