"""`stage=convert`: read a training file of TRL, axolotl or LLaMA-Factory, and print a command with its settings.

The tables in `frameworks/` name a framework's keys by TRL's, with its defaults. TRL's own table names TRL's by ours.
Every setting without a counterpart is listed. Nothing is built."""

import math
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
from stages.config.override_text import hydra_text
from stages.config.schema import Config
from stages.extras.convert import Convert
from stages.store.bounded_yaml import read_yaml_text
from stages.store.plugins import user_path
from stages.store.sealed_json import WRONG_SHAPE

Settings = dict[str, Any]

FRAMEWORKS = ("axolotl", "llama_factory", "trl")  # TRL last: its keys are in the others' files, too
STAGE_OF_METHOD = {"rm": "reward", "ipo": "dpo"}  # others have our name
# the arguments that are keys of a stage's `trainer`
TRAINER_KEYS = {"sft": SFTArguments, "dpo": DPOArguments, "reward": RewardArguments}
ASKING_FOR_NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "no", "none", [], {})
DIFFERENCES = "What differs by design: docs/how-to/coming-from-trl.md"


def load_table(name: str) -> Mapping[str, Any]:
    return read_beside(str(Path(__file__).with_name("frameworks") / name))


TRL = load_table("trl")


@dataclass
class Conversion:
    """The translation of a file. In keys of `overrides` and in reasons, STAGE is the stage's name."""

    stage: str
    processes: int
    # under TRL's names: the framework's defaults, then the file's settings
    untranslated: Settings
    file_keys: dict[str, str] = field(default_factory=dict)  # by TRL's names
    overrides: Settings = field(default_factory=dict)
    # settings without a counterpart: those that change what is trained, and the others
    left_out: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)
    harmless_names: frozenset[str] = frozenset()

    def take(self, name: str, otherwise: Any = None) -> Any:
        """Return a setting in order to translate it; `otherwise` without it."""
        return self.untranslated.pop(name, otherwise)

    def leave_out(self, name: str, value: Any, reason: str | None = None) -> None:
        """List a setting without a counterpart, unless its value asks for nothing."""
        is_switched_off = value is False and name in TRL["on_by_default"]
        if value in ASKING_FOR_NOTHING and not is_switched_off:
            return
        text = " ".join(str(value).split())[:60]
        line = f"{self.file_keys.get(name, name)}={text}"
        if reason:
            line += f": {reason.replace('STAGE', self.stage)}"
        if name in self.harmless_names:
            self.harmless.append(line)
        else:
            self.left_out.append(line)


def run(cfg: Config, *_: object) -> None:
    """Print the command for a training file, the framework's defaults that it relies on, and what has no counterpart.
    Raise UserError if the file is not the YAML of a training."""
    typed: Convert = vars(cfg)["convert"]
    where = f"convert.file={typed.file}"
    if not typed.file:
        raise UserError(f"{where}: there is none. Type convert.file=FILE, the YAML of a training.")
    settings = read_settings(user_path(typed.file), where)
    framework = detect_framework(settings, where)
    stage = typed.stage or detect_stage(settings, framework, where)
    table = load_table(framework)
    defaults = framework_defaults(table, stage)
    harmless_names = frozenset([*TRL["harmless"], *table["harmless"]])
    this = Conversion(stage, typed.processes, dict(defaults), harmless_names=harmless_names)
    try:
        convert(this, table, settings)
    except WRONG_SHAPE as error:
        problem = f"{framework} reads another kind of value ({type(error).__name__}: {error})"
        raise UserError(f"{where}: {problem}. Correct it, or leave it out.") from error
    words = [*program(), f"stage={stage}"]
    for key, value in this.overrides.items():
        words.append(f"{key.replace('STAGE', stage)}={hydra_text(value)}")
    lines = [f"{typed.file}: {stage}, by the keys of {table['title']}", "", shlex.join(words)]
    # a default that is still untranslated has no reader in this training
    used_defaults = defaults.keys() - this.file_keys - this.untranslated.keys()
    if used_defaults:
        lines += ["", f"Defaults of {table['title']} where the file is silent:"]
        lines += [f"  {name}={defaults[name]}" for name in sorted(used_defaults)]
    if this.left_out:
        lines += ["", "Not converted, and changes what is trained:"]
        lines += [f"  {line}" for line in this.left_out]
    if this.harmless:
        lines += ["", "Not converted, and changes nothing that is trained:"]
        lines += [f"  {line}" for line in this.harmless]
    lines += ["", DIFFERENCES, ""]
    sys.stdout.write(visible("\n".join(lines), keep="\n"))


def read_settings(path: Path, where: str) -> Settings:
    """Return the settings in a YAML file. Raise UserError if it has none."""
    # unlike yaml.safe_load, OmegaConf refuses a key that stands twice, and reads 1e-4 as a number
    try:
        settings = OmegaConf.create(read_yaml_text(path))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
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
        choices = "|".join(TRAINER_KEYS)
        raise UserError(
            f"{where}: TRL's files do not say what they train. Type convert.stage={choices}."
        )
    # axolotl's key, then LLaMA-Factory's
    method = str(settings.get("rl") or settings.get("stage") or "sft")
    if settings.get("reward_model") is True:
        method = "reward"
    stage = STAGE_OF_METHOD.get(method, method)
    require_known(f"{where}: training", [stage], TRAINER_KEYS)
    return stage


def framework_defaults(table: Mapping[str, Any], stage: str) -> Settings:
    """Return the defaults that a framework's table lists, by TRL's names."""
    defaults = Settings()
    for argument in fields(OBJECTIVES[stage].arguments_class):
        is_as_in_trl = argument.name in table["silent"]
        if is_as_in_trl:
            defaults[argument.name] = argument.default
    return defaults | table["defaults"]


def convert(this: Conversion, table: Mapping[str, Any], file: Settings) -> None:
    """Translate the settings of a file, and list those without a counterpart."""
    put_under_trl_names(this, table, file)
    # in place of what the demo sets
    this.overrides |= {"sft": "none", this.stage: "default", "model.path": "MODEL"}
    held_out = take_held_out_share(this)
    sources = [under_our_keys(this, entry) for entry in take_data_sets(this)]
    if this.stage == "sft":
        set_demonstrations(this, sources, held_out)
    else:
        set_preference_set(this, sources, held_out)
    set_evaluations(this, held_out)
    rows = int(this.take("per_device_train_batch_size"))
    steps = int(this.take("gradient_accumulation_steps"))
    this.overrides["STAGE.batch_size"] = rows * steps * this.processes
    this.overrides["STAGE.runtime.micro_batch"] = rows
    if this.processes > 1:
        this.overrides |= {"launch": "ddp", "launch.processes": this.processes}
    sets_read = sources if this.stage == "sft" else sources[:1]
    set_or_list_steps(this, count_rows(sets_read), held_out)
    set_adapter(this)
    losses = this.untranslated.get("loss_type")
    if isinstance(losses, str) and this.stage == "dpo":
        this.untranslated["loss_type"] = [losses]
    set_or_list_the_others(this)


def put_under_trl_names(this: Conversion, table: Mapping[str, Any], file: Settings) -> None:
    """Put the file's settings under TRL's names. A key in `means` stands for others, by its value."""
    means = TRL["means"] | table["means"]
    mixture = file.pop("dataset_mixture", None) or {}
    for key, value in {**mixture, **file}.items():
        if value is None:
            continue
        by_trl_name = {table["rename"].get(key, key): value}
        if key in means:
            word = str(value).lower()
            by_trl_name = means[key].get(word, {})
            if word not in means[key]:
                this.leave_out(key, value, f"converted are {', '.join(means[key])}")
        named_before = by_trl_name.keys() & this.file_keys.keys()
        if named_before:
            this.left_out.append(f"{key}={value}: {this.file_keys[min(named_before)]} is read")
            continue
        this.untranslated |= by_trl_name
        this.file_keys |= dict.fromkeys(by_trl_name, key)


def take_held_out_share(this: Conversion) -> float | None:
    """Return the share of the rows that is held out: 0 if every row is trained, None for a number of rows, which is
    listed."""
    size = this.untranslated["validation_size"]
    if size >= 1:
        return None
    share: float = this.take("validation_size")
    return share or 0


def set_evaluations(this: Conversion, held_out: float | None) -> None:
    """Set how often held-out rows are evaluated: never, or as often in each epoch as the file says."""
    times = this.untranslated.get("evals_per_epoch")
    if held_out == 0:
        this.overrides["STAGE.evaluations"] = 0
    elif times:
        this.take("evals_per_epoch")
        epochs = float(this.untranslated["num_train_epochs"])
        this.overrides["STAGE.evaluations"] = max(1, round(times * epochs))


def set_or_list_steps(this: Conversion, rows: int | None, held_out: float | None) -> None:
    """Set the epochs that make a file's number of steps, which overrides its epochs there. Without the number of rows,
    list it with the calculation."""
    most_steps = this.take("max_steps", -1)
    if most_steps <= 0:
        return
    batch_size = this.overrides["STAGE.batch_size"]
    is_packed = this.untranslated.get("packing")
    if rows is None or held_out is None or is_packed:
        reason = f"STAGE.epochs={most_steps * batch_size}/ROWS, for so many rows of training"
        this.leave_out("max_steps", most_steps, reason)
        return
    # a step has a whole batch, and the last step of a part of an epoch is rounded up
    steps_per_epoch = max(1, int(rows * (1 - held_out)) // batch_size)
    epochs = math.floor(1e6 * most_steps / steps_per_epoch) / 1e6
    this.untranslated["num_train_epochs"] = epochs
    this.file_keys["num_train_epochs"] = "max_steps"


def count_rows(sources: list[Settings]) -> int | None:
    """Return the number of rows in the data sets; None if it is unknown before they are downloaded."""
    rows = 0
    for source in sources:
        file = Path(str(source["path"]))
        if "epochs" in source:
            return None
        if "rows" in source:
            rows += source["rows"]
        elif file.suffix == ".jsonl" and file.is_file():
            with file.open(encoding="utf-8") as lines:
                rows += sum(1 for line in lines if line.strip())
        else:
            return None
    return rows


def take_data_sets(this: Conversion) -> list[Settings]:
    """Return the data sets for training, with the keys of their framework."""
    sets = list[Settings](this.take("datasets", []))
    path = this.take("dataset_name")
    if path:
        name = this.take("dataset_config")
        sets.append({"path": path, "name": name, "split": this.take("dataset_train_split")})
    names = this.take("dataset", [])  # LLaMA-Factory's
    this.leave_out("dataset", names, TRL["reasons"]["dataset"])
    if isinstance(names, str):
        names = names.split(",")
    rows = this.take("max_samples")
    for name in names:
        sets.append({"path": name.strip(), "rows": rows})
    return sets


def under_our_keys(this: Conversion, data_set: Settings) -> Settings:
    """Return a data set under our keys."""
    source = Settings()
    columns = Settings()
    for key, value in data_set.items():
        if key in TRL["columns"]:
            columns[TRL["columns"][key]] = value
        elif key not in TRL["source"]:
            name = f"datasets.{key}"
            this.leave_out(name, value, TRL["reasons"].get(name))
        elif value is not None:
            source[TRL["source"][key]] = value
    if columns:
        source["columns"] = columns
    return source


def set_demonstrations(this: Conversion, sources: list[Settings], held_out: float | None) -> None:
    """Set the sources of SFT's rows, of which a share is held out."""
    if held_out is not None:
        splits = {"sft": round(1 - held_out, 6)}
        if held_out:
            splits["validation"] = held_out
        sources = [source | {"splits": splits} for source in sources]
    this.overrides |= {"data": "file", "data.sources": sources}


def set_preference_set(this: Conversion, sources: list[Settings], held_out: float | None) -> None:
    """Set the preference set, which is the first data set, and of which a share is held out."""
    this.overrides |= {"label": "dataset", "label.path": "FILE"}
    for source in sources[1:]:
        this.leave_out(
            "datasets", source["path"], "one preference set is read. Join the others into its file"
        )
    for source in sources[:1]:
        for key in ("epochs", "rows"):
            this.leave_out(f"datasets.{key}", source.pop(key, None), "every preference is read")
        this.overrides |= {f"label.{key}": value for key, value in source.items()}
    if held_out is not None:
        this.overrides["pairs.validation_fraction"] = held_out


def set_adapter(this: Conversion) -> None:
    """Set the adapter. Without one, its settings are listed."""
    kind = this.take("adapter")
    has_four_bits = this.take("load_in_4bit")
    if not kind:  # the adapter's settings are left, and will be listed
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


def set_or_list_the_others(this: Conversion) -> None:
    """Set every setting that has a key here or is an argument of TRL's trainer, and list the others."""
    for name, value in list(this.untranslated.items()):
        key = our_key(this.stage, name)
        reason = TRL["reasons"].get(name)
        if key:
            this.overrides[key] = this.take(name)
        elif name in this.file_keys:  # or else a default that this training does not read
            this.leave_out(name, value, reason)


def our_key(stage: str, name: str) -> str | None:
    """Return the key of a setting, by TRL's table or as an argument in `trainer`; None if the stage has none."""
    key = TRL["settings"].get(name)
    other_stages = {*TRAINER_KEYS} - {stage}
    if key and key.partition(".")[0] not in other_stages:
        return str(key)
    trainer_keys = {each.name for each in fields(TRAINER_KEYS[stage])}
    return f"STAGE.trainer.{name}" if name in trainer_keys else None
