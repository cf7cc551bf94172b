"""`stage=convert`: read a training file of TRL, axolotl or LLaMA-Factory, and print a command with its settings.

The tables in `frameworks/` name a framework's keys by TRL's, with its defaults. TRL's own table names TRL's by ours.
Every setting without a counterpart is listed. Nothing is built."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stages.config.blocks.arguments import DPOArguments, RewardArguments, SFTArguments
from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError, require_known, visible
from stages.config.installation import program, read_beside
from stages.config.schema import Config
from stages.store.plugins import user_path
from stages.store.sealed_json import WRONG_SHAPE

Settings = dict[str, Any]

FRAMEWORKS = ("axolotl", "llama_factory", "trl")  # TRL last: its keys are in the others' files, too
STAGES = {"rm": "reward", "ipo": "dpo"}  # words of others for a stage
# the arguments that are keys of a stage's `trainer`
TYPED = {"sft": SFTArguments, "dpo": DPOArguments, "reward": RewardArguments}
# values that ask for nothing
NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "no", "none", [], {})
# text that needs no quotes
PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z_./][\w./@+-]*", re.ASCII)
DIFFERENCES = "What differs by design: docs/how-to/coming-from-trl.md"


def load_table(name: str) -> Mapping[str, Any]:
    return read_beside(str(Path(__file__).with_name("frameworks") / name))


TRL = load_table("trl")


@dataclass
class Conversion:
    """The translation of a file. In keys of `overrides` and in reasons, STAGE is the stage's name."""

    stage: str
    processes: int
    # still to be translated, under TRL's names: the framework's defaults, then the file's settings
    settings: Settings
    names: dict[str, str] = field(default_factory=dict)  # the file's key, by TRL's name
    overrides: Settings = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # settings without a counterpart

    def take(self, name: str, otherwise: Any = None) -> Any:
        """Return a setting in order to translate it."""
        return self.settings.pop(name, otherwise)

    def refuse(self, name: str, value: Any, reason: str | None = None) -> None:
        """List a setting without a counterpart, unless its value asks for nothing."""
        if value in NOTHING:
            return
        text = " ".join(str(value).split())[:60]
        line = f"{self.names.get(name, name)}={text}"
        if reason:
            line += f": {reason.replace('STAGE', self.stage)}"
        self.left_out.append(line)


def run(cfg: Config, *_: object) -> None:
    """Print the command for a training file, its defaults that differ from ours, and what has no counterpart.
    Raise UserError if the file is not the YAML of a training."""
    where = f"convert.file={cfg.convert.file}"
    if not cfg.convert.file:
        raise UserError(f"{where}: there is none. Type convert.file=FILE, the YAML of a training.")
    settings = read_settings(user_path(cfg.convert.file), where)
    framework = detect_framework(settings, where)
    stage = cfg.convert.stage or detect_stage(settings, framework, where)
    table = load_table(framework)
    defaults = defaults_of(table, stage)
    this = Conversion(stage, cfg.convert.processes, dict(defaults))
    try:
        convert(this, table, settings)
    except WRONG_SHAPE as error:
        problem = f"{framework} reads another kind of value ({type(error).__name__}: {error})"
        raise UserError(f"{where}: {problem}. Correct it, or leave it out.") from error
    words = [*program(), f"stage={stage}"]
    for key, value in this.overrides.items():
        words.append(f"{key.replace('STAGE', stage)}={spell(value)}")
    lines = [f"{cfg.convert.file}: {stage}, by the keys of {table['title']}", "", shlex.join(words)]
    # a default that is still there has no reader in this training
    silent = defaults.keys() - this.names - this.settings.keys()
    if silent:
        lines += ["", f"Defaults of {table['title']} where the file is silent:"]
        lines += [f"  {name}={defaults[name]}" for name in sorted(silent)]
    if this.left_out:
        lines += ["", "Not converted:", *(f"  {line}" for line in this.left_out)]
    lines += ["", DIFFERENCES, ""]
    sys.stdout.write(visible("\n".join(lines), keep="\n"))


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


def detect_framework(settings: Settings, where: str) -> str:
    """Return the first framework of which the file has two typical keys."""
    for name in FRAMEWORKS:
        if len(settings.keys() & {*load_table(name)["typical"]}) > 1:
            return name
    raise UserError(
        f"{where}: this configures no training of TRL, axolotl or LLaMA-Factory. Name another file."
    )


def detect_stage(settings: Settings, framework: str, where: str) -> str:
    """Return the stage that a file of axolotl or LLaMA-Factory names."""
    if framework == "trl":  # the script says it there, not the file
        choices = "|".join(TYPED)
        raise UserError(
            f"{where}: TRL's files do not say what they train. Type convert.stage={choices}."
        )
    method = str(settings.get("rl") or settings.get("stage") or "sft")
    if settings.get("reward_model") is True:
        method = "reward"
    stage = STAGES.get(method, method)
    require_known(f"{where}: training", [stage], TYPED)
    return stage


def defaults_of(table: Mapping[str, Any], stage: str) -> Settings:
    """Return what silence means in a framework, by TRL's names."""
    defaults = Settings()
    for argument in fields(OBJECTIVES[stage].arguments_class):
        if argument.name in table["silent"]:
            defaults[argument.name] = argument.default
    return defaults | table["defaults"]


def convert(this: Conversion, table: Mapping[str, Any], file: Settings) -> None:
    """Translate the settings of a file, and list those without a counterpart."""
    rename(this, table, file)
    # in place of what the demo sets
    this.overrides |= {"sft": "none", this.stage: "default", "model.path": "MODEL"}
    sources = [read_source(this, entry) for entry in data_sets(this)]
    if this.stage == "sft":
        this.overrides |= {"data": "file", "data.sources": sources}
    else:
        preference_set(this, sources)
    rows = int(this.take("per_device_train_batch_size"))
    steps = int(this.take("gradient_accumulation_steps"))
    this.overrides["STAGE.batch_size"] = rows * steps * this.processes
    this.overrides["STAGE.runtime.micro_batch"] = rows
    if this.processes > 1:
        this.overrides |= {"launch": "ddp", "launch.processes": this.processes}
    adapter(this)
    losses = this.settings.get("loss_type")
    if isinstance(losses, str) and this.stage == "dpo":
        this.settings["loss_type"] = [losses]
    by_name(this)


def rename(this: Conversion, table: Mapping[str, Any], file: Settings) -> None:
    """Put the file's settings under TRL's names. A key in `means` stands for others, by its value."""
    means = TRL["means"] | table["means"]
    mixture = file.pop("dataset_mixture", None) or {}
    for key, value in {**mixture, **file}.items():
        if value is None:
            continue
        implied = {table["rename"].get(key, key): value}
        if key in means:
            word = str(value).lower()
            implied = means[key].get(word, {})
            if word not in means[key]:
                this.refuse(key, value, f"converted are {', '.join(means[key])}")
        known = implied.keys() & this.names.keys()
        if known:
            this.left_out.append(f"{key}={value}: {this.names[min(known)]} is read")
            continue
        this.settings |= implied
        this.names |= dict.fromkeys(implied, key)


def data_sets(this: Conversion) -> list[Settings]:
    """Return the data sets for training, with the keys of their framework."""
    sets = list[Settings](this.take("datasets", []))
    path = this.take("dataset_name")
    if path:
        name = this.take("dataset_config")
        sets.append({"path": path, "name": name, "split": this.take("dataset_train_split")})
    names = this.take("dataset", [])  # LLaMA-Factory's
    this.refuse("dataset", names, TRL["reasons"]["dataset"])
    if isinstance(names, str):
        names = names.split(",")
    rows = this.take("max_samples")
    for name in names:
        sets.append({"path": name.strip(), "rows": rows})
    return sets


def read_source(this: Conversion, entry: Settings) -> Settings:
    """Return a data set under our keys."""
    source = Settings()
    columns = Settings()
    for key, value in entry.items():
        if key in TRL["columns"]:
            columns[TRL["columns"][key]] = value
        elif key not in TRL["source"]:
            this.refuse(f"datasets.{key}", value, "columns and roles are recognised")
        elif value is not None:
            source[TRL["source"][key]] = value
    if columns:
        source["columns"] = columns
    return source


def preference_set(this: Conversion, sources: list[Settings]) -> None:
    """Set the preference set, which is the first data set."""
    this.overrides |= {"label": "dataset", "label.path": "FILE"}
    for source in sources[1:]:
        reason = "one preference set is read. Join the others into its file"
        this.refuse("datasets", source["path"], reason)
    for source in sources[:1]:
        for key, value in source.items():
            if key in ("epochs", "rows"):
                this.refuse(f"datasets.{key}", value, "every preference is read")
            else:
                this.overrides[f"label.{key}"] = value


def adapter(this: Conversion) -> None:
    """Set the adapter. Without one, its settings are listed."""
    kind = this.take("adapter")
    has_four_bits = this.take("load_in_4bit")
    if not kind:
        return
    rank = this.take("lora_r")
    layers = this.take("lora_target_modules")
    if isinstance(layers, str):
        layers = re.sub("^all$", "all-linear", layers).replace(" ", "").split(",")
    this.overrides["STAGE.adapter"] = "qlora" if has_four_bits else kind
    this.overrides["STAGE.lora.rank"] = rank
    this.overrides["STAGE.lora.alpha"] = this.take("lora_alpha", 2 * rank)  # as LLaMA-Factory
    if layers:
        this.overrides["STAGE.lora.target_modules"] = layers


def by_name(this: Conversion) -> None:
    """Set every setting that has a key here or is an argument of TRL's trainer, and list the others."""
    for name, value in list(this.settings.items()):
        key = our_key(this.stage, name)
        reason = TRL["reasons"].get(name)
        if key:
            this.overrides[key] = this.take(name)
        elif name in this.names:  # or else a default that this training does not read
            this.refuse(name, value, reason)


def our_key(stage: str, name: str) -> str | None:
    """Return the key of a setting that the table names or `trainer` types; None if a stage has none."""
    key = TRL["settings"].get(name)
    others = {*TYPED} - {stage}
    if key and key.partition(".")[0] not in others:
        return str(key)
    typed = {each.name for each in fields(TYPED[stage])}
    return f"STAGE.trainer.{name}" if name in typed else None


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
