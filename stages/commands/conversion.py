"""Translate another framework's training settings into overrides.

The tables in `frameworks/` name a framework's keys by TRL's, with its defaults. TRL's own table names TRL's by ours."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from stages.config.blocks.arguments import (
    DPOArguments,
    RewardArguments,
    SFTArguments,
)
from stages.config.blocks.training import OBJECTIVES, WITH_TRL
from stages.config.choices import LOSS_TYPES, SIMPO, Adapter
from stages.config.installation import read_beside
from stages.config.trainers import READ_BY, elsewhere_message

Settings = dict[str, Any]


def load_table(name: str) -> Mapping[str, Any]:
    return read_beside(str(Path(__file__).with_name("frameworks") / name))


TRL = load_table("trl")
# the arguments that are keys of a stage's `trainer`
TYPED = {"sft": SFTArguments, "dpo": DPOArguments, "reward": RewardArguments}
# values that ask for nothing
NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "no", "none", [], {})
# names of DeepSpeed's configurations for ZeRO-3, and its key
ZERO3 = r"z(ero)?_?3|'stage': 3"


class Heading(StrEnum):
    """The kinds of remarks below the command, in the order in which they are printed."""

    defaults = "Defaults of that framework where the file is silent"
    without = "Without a counterpart"
    unknown = "Not known to this command, and left out"
    notes = "By design"
    neutral = "Left out, without effect on the result"


@dataclass
class Conversion:
    """The translation of a file. In keys of `overrides` and in reasons, STAGE is the stage's name."""

    stage: str
    table: Mapping[str, Any]  # of the framework
    processes: int
    folder: Path  # of the file
    # still to be translated, under TRL's names: the framework's defaults, then the file's settings
    settings: Settings = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the file's key, by TRL's name
    overrides: Settings = field(default_factory=dict)
    remarks: dict[Heading, list[str]] = field(default_factory=lambda: defaultdict(list))

    def take(self, name: str, otherwise: Any = None) -> Any:
        """Return a setting in order to translate it."""
        return self.settings.pop(name, otherwise)

    def refuse(self, name: str, value: Any, reason: str) -> None:
        """List a setting without a counterpart, unless its value asks for nothing."""
        if value not in NOTHING:
            text = " ".join(str(value).split())[:60]
            reason = reason.replace("STAGE", self.stage)
            self.remarks[Heading.without].append(f"{self.names.get(name, name)}={text}: {reason}")


@cache
def trl_fields(stage: str) -> dict[str, Any]:
    """Return the fields of TRL's `ModelConfig` and of the objective's class in TRL, by name."""
    import trl

    kinds = (trl.ModelConfig, OBJECTIVES[stage].arguments_class)
    return {each.name: each for kind in kinds for each in fields(kind)}


def convert(this: Conversion, file: Settings) -> None:
    """Translate the settings of a file, and list those without a counterpart."""
    known = trl_fields(this.stage)
    defaults = dict(this.table["defaults"])
    for name in this.table["silent"]:
        if name in known:
            defaults[name] = known[name].default
    this.settings |= defaults
    rename(this, file)
    # in place of what the demo sets
    this.overrides |= {"sft": "none", this.stage: "default", "model.path": "MODEL"}
    share = held_out(this)
    sources = [read_source(this, entry) for entry in data_sets(this)]
    if this.stage == "sft":
        demonstrations(this, sources, share)
    else:
        preference_set(this, sources, share)
    batch(this)
    if this.stage == "dpo":
        loss(this)
    if this.take("use_peft"):
        adapter(this)
    template(this)
    by_name(this)
    for name, value in defaults.items():
        if name not in {*this.names, *this.settings}:  # translated above
            this.remarks[Heading.defaults].append(f"{name}={value}")
    this.remarks[Heading.notes] += TRL["notes"] + this.table["differs"]


def rename(this: Conversion, file: Settings) -> None:
    """Put the file's settings under TRL's names. A key in `means` stands for others, by its value."""
    means = TRL["means"] | this.table["means"]
    mixture = file.pop("dataset_mixture", None) or {}  # nested by the handbook
    for key, value in {**mixture, **file}.items():
        if key == "max_length" and value is None:  # there it means no limit
            this.refuse(key, "null", "STAGE.max_length is always a number")
        if value is None:
            continue
        implied = {this.table["rename"].get(key, key): value}
        if key in means:
            word = str(value).lower()
            implied = means[key].get(word, {})
            if word not in means[key]:
                this.refuse(key, value, f"converted are {', '.join(means[key])}")
        this.settings |= implied
        this.names |= dict.fromkeys(implied, key)
    ratio = this.take("warmup_ratio")
    has_steps = "warmup_steps" in this.names and this.settings["warmup_steps"]
    if ratio is not None and not has_steps:  # as TRL 1.16 does
        this.settings["warmup_steps"] = ratio
        this.names["warmup_steps"] = "warmup_ratio"


def held_out(this: Conversion) -> float | None:
    """Set how often held-out rows are read, and return their share; None if the file gives none. Steps between
    evaluations have no counterpart."""
    size = this.settings.get("validation_size")
    strategy = this.settings.get("eval_strategy")
    times = this.take("evals_per_epoch", int(strategy == "epoch"))
    if size == 0 or (size is None and strategy in NOTHING):
        this.overrides["STAGE.evaluations"] = 0
        return 0
    if times:
        epochs = this.settings.get("num_train_epochs")
        this.overrides["STAGE.evaluations"] = max(1, round(times * epochs))
    if size is None or size >= 1:  # a number of rows
        return None
    return float(this.take("validation_size"))


def data_sets(this: Conversion) -> list[Settings]:
    """Return the data sets for training, with the keys of their framework."""
    sets = list[Settings](this.take("datasets", []))
    mixer = this.take("dataset_mixer", {})  # of older files of the handbook
    for split in this.take("dataset_splits", ["train"]):
        if "test" in split:
            this.refuse("dataset_splits", split, "held-out rows are a share of the others")
            continue
        for path, share in mixer.items():
            sets.append({"path": path, "weight": share, "split": split})
    path = this.take("dataset_name")
    if path:
        name = this.take("dataset_config")
        sets.append({"path": path, "name": name, "split": this.take("dataset_train_split")})
    names = this.take("dataset", [])
    if isinstance(names, str):
        names = names.split(",")
    folder = this.take("dataset_dir", "data")
    rows = this.take("max_samples")
    for name in names:
        sets.append(listed_set(this, name.strip(), folder) | {"rows": rows})
    return sets


def listed_set(this: Conversion, name: str, inner: str) -> Settings:
    """Return the entry of a data set in LLaMA-Factory's list, which is in a folder above the file or in a copy here."""
    for outer in (Path(), this.folder, *this.folder.parents):
        file = outer / inner / "dataset_info.json"
        listed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if name in listed:
            entry = listed[name]
            path = entry.get("hf_hub_url") or str(file.with_name(entry["file_name"]))
            return {**entry, **entry.get("columns", {}), "path": path}
    text = f"dataset={name} is in no dataset_info.json here. Type its path in the command"
    this.remarks[Heading.notes].append(text)
    return {"path": name}


def read_source(this: Conversion, entry: Settings) -> Settings:
    """Return a data set under our keys, without those that only say what its columns tell."""
    source = Settings()
    columns = Settings()
    for key, value in entry.items():
        if value is None or [key, value] in TRL["usual"]:
            continue
        if key in TRL["source"]:
            source[TRL["source"][key]] = value
        elif key in TRL["columns"]:
            columns[TRL["columns"][key]] = value
        elif key not in TRL["recognised"] and not str(value).startswith("chat_template"):
            reason = "the chat template renders rows, by the roles of columns"
            this.refuse(f"datasets.{key}", value, reason)
    split, _, part = str(source.get("hub_split", "")).partition("[")
    if part:
        reason = "splits are read whole. A source has rows and epochs for a part"
        this.refuse("datasets.split", source["hub_split"], reason)
        source["hub_split"] = split
    if columns:
        source["columns"] = columns
    return source


def demonstrations(this: Conversion, sources: list[Settings], share: float | None) -> None:
    """Set the sources of SFT's rows, of which a share is held out."""
    if share is not None:
        splits = {"sft": round(1 - share, 6)}
        if share:
            splits["validation"] = share
        sources = [source | {"splits": splits} for source in sources]
    this.overrides |= {"data": "file", "data.sources": sources}


def preference_set(this: Conversion, sources: list[Settings], share: float | None) -> None:
    """Set the preference set, of which a share is held out."""
    this.overrides |= {"label": "dataset", "label.path": "FILE"}
    if share is not None:
        this.overrides["pairs.validation_fraction"] = share
    for source in sources[:1]:
        for name in ("epochs", "rows"):
            this.refuse(f"datasets.{name}", source.pop(name, None), "every preference is read")
        this.overrides |= {f"label.{key}": value for key, value in source.items()}
    for source in sources[1:]:
        name = f"{source['path']} {source.get('hub_split', '')}"
        this.refuse("datasets", name, "one preference set is read. Join the others into its file")


def batch(this: Conversion) -> None:
    """Set the rows of a step, which TRL counts by device and accumulation, and how processes share the model."""
    rows = int(this.take("per_device_train_batch_size"))
    steps = int(this.take("gradient_accumulation_steps"))
    this.overrides["STAGE.batch_size"] = rows * steps * this.processes
    this.overrides["STAGE.runtime.micro_batch"] = rows
    launch = "ddp"
    for name, kind, whole in (("fsdp", "fsdp", ""), ("deepspeed", "zero3", ZERO3)):
        chosen = this.take(name)
        if not chosen:
            continue
        launch = kind
        if this.processes == 1 or not re.search(whole, str(chosen)):
            reason = f"launch={kind} divides weights too, among convert.processes=N"
            this.refuse(name, chosen, reason)
    if this.processes > 1:
        this.overrides |= {"launch": launch, "launch.processes": this.processes}


def loss(this: Conversion) -> None:
    """Set DPO's losses: a weight of SFT's loss on the chosen answers adds a loss."""
    losses = this.take("loss_type", "sigmoid")
    if isinstance(losses, str):
        losses = [losses]
    weights = this.take("loss_weights", [1.0] * len(losses))
    weight = this.take("rpo_alpha")
    unknown = {*losses} - {*LOSS_TYPES}
    if losses == [SIMPO] and not weight:
        this.overrides["dpo.simpo_gamma"] = this.take("simpo_gamma", 0.5)
    elif unknown:
        this.refuse("loss_type", min(unknown), f"losses are {', '.join(LOSS_TYPES)}")
        losses = ["sigmoid"]
        weights = [1.0]
    if weight:
        losses = [*losses, "sft"]
        weights = [*weights, float(weight)]
    this.overrides["dpo.loss_type"] = losses
    if {*weights} != {1.0}:
        this.overrides["dpo.loss_weights"] = weights
    for name, readers in READ_BY.items():
        if {*losses}.isdisjoint(readers):
            this.refuse(name, this.take(name), f"dpo.loss_type=[{readers[0]}] reads it")


def adapter(this: Conversion) -> None:
    """Set the adapter. What remains without one is listed as not read."""
    kind = Adapter.lora
    if this.take("load_in_4bit"):
        if Adapter.qlora in OBJECTIVES[this.stage].adapters:
            kind = Adapter.qlora
        else:
            this.refuse("load_in_4bit", True, "STAGE.adapter=lora keeps 16-bit weights")
    rank = this.take("lora_r")
    this.overrides["STAGE.adapter"] = str(kind)
    this.overrides["STAGE.lora.rank"] = rank
    this.overrides["STAGE.lora.alpha"] = this.take("lora_alpha", 2 * rank)  # as LLaMA-Factory
    layers = this.take("lora_target_modules")
    if isinstance(layers, str):
        layers = re.sub("^all$", "all-linear", layers).replace(" ", "").split(",")
    if layers:
        this.overrides["STAGE.lora.target_modules"] = layers


def template(this: Conversion) -> None:
    """Set the chat template by the marks in a Jinja text."""
    text = str(this.take("chat_template", ""))
    for mark, name in TRL["templates"].items():
        if mark in text:
            this.settings["template"] = name
    nearest = this.settings.get("template") or "file sft.template.path=FILE"
    this.refuse("chat_template", text, f"nearest is template={nearest}")


def by_name(this: Conversion) -> None:
    """Set every setting that has a key here or is an argument of TRL's trainer, and list the others."""
    neutral = TRL["neutral"] + this.table["neutral"]
    for name, value in list(this.settings.items()):
        reason = TRL["reasons"].get(name)
        if reason is None and name in trl_fields(this.stage):
            reason = elsewhere_message(this.stage, name)
        is_share = name == "save_steps" and isinstance(value, float)  # of the training
        key = our_key(this.stage, name)
        if key and not is_share:
            this.overrides[key] = this.take(name)
        elif name not in this.names:
            continue  # a default that this training does not read
        elif name in neutral:
            this.remarks[Heading.neutral].append(f"{this.names[name]}={value}")
        elif reason:
            this.refuse(name, value, reason)
        elif name in trl_fields(this.stage):
            this.overrides[f"STAGE.trainer.extra.{name}"] = value
        else:
            this.remarks[Heading.unknown].append(this.names[name])


def our_key(stage: str, name: str) -> str | None:
    """Return the key of a setting that the table names or `trainer` types; None if a stage has none."""
    key = TRL["settings"].get(name)
    others = {*WITH_TRL} - {stage}
    if key and key.partition(".")[0] not in others:
        return str(key)
    typed = {each.name for each in fields(TYPED[stage])}
    return f"STAGE.trainer.{name}" if name in typed - {*TRL["neutral"]} else None
