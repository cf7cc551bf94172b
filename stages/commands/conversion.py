"""Translate another framework's training settings into overrides.

The tables in `frameworks/` name a framework's keys by TRL's, with its defaults; `common.yaml` continues from TRL's."""

import json
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import trl
from omegaconf import DictConfig, OmegaConf

from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.training import DPO, OBJECTIVES, WITH_TRL, Training
from stages.config.choices import LOSS_TYPES, SIMPO, Adapter, Checkpointing, Sharding
from stages.config.installation import read_beside
from stages.config.schema import group_defaults
from stages.config.trainers import READ_BY, SET_BY_STAGE, SET_ELSEWHERE, unread_argument

Settings = dict[str, Any]
# values that ask for nothing
NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "no", "none", [], {})


def load_table(name: str) -> Mapping[str, Any]:
    return read_beside(str(Path(__file__).with_name("frameworks") / name))


@cache
def trl_fields(name: str) -> dict[str, Field[Any]]:
    """Return the fields of an objective's class in TRL, or of its `model`, by name."""
    kind = trl.ModelConfig if name == "model" else OBJECTIVES[name].arguments_class
    return {field.name: field for field in fields(kind)}


HEADINGS: Mapping[str, str] = load_table("common")["headings"]  # of remarks, by kind


@dataclass
class Conversion:
    """The translation of a file. `settings` are those still to be translated, under TRL's names."""

    stage: str
    framework: str
    block: Training
    processes: int
    file: Path
    settings: Settings = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the file's key, by TRL's name
    overrides: Settings = field(default_factory=dict)
    remarks: dict[str, dict[str, list[str]]] = field(
        default_factory=lambda: {kind: {} for kind in HEADINGS}
    )

    def rename(self, file: Mapping[str, Any]) -> None:
        """Put the file's settings under TRL's names, then the framework's defaults for those that it leaves out."""
        table, common = load_table(self.framework), load_table("common")
        # the handbook nests what TRL has at the top level
        mixture: Settings = file.get("dataset_mixture") or {}
        for key, value in {**mixture, **file, "dataset_mixture": None}.items():
            if (meanings := table.get("means", {}).get(key)) is None:
                implied = (
                    {table.get("rename", {}).get(key, key): value} if value is not None else {}
                )
            elif isinstance(value, list | dict) or (implied := meanings.get(value)) is None:
                implied = {}
                self.refuse(key, value, f"converted are {', '.join(map(str, meanings))}")
            # there it means no limit
            if key == "max_length" and value is None and self.framework == "trl":
                self.remark("without", "STAGE.max_length is always a number", setting=f"{key}=null")
            self.settings |= implied
            self.names |= dict.fromkeys(implied, key)
        known = trl_fields("model") | trl_fields(self.stage)
        assumed = {
            name: known[name].default
            for name in common["trl_defaults"]
            if name in known and self.framework == "trl"
        }
        self.settings = assumed | table["defaults"] | self.settings

    @cached_property
    def group(self) -> DictConfig:
        return group_defaults(self.stage)

    def take(self, name: str, default: Any = None) -> Any:
        return self.settings.pop(name, default)

    def put(self, key: str, value: Any, *names: str) -> None:
        """Set a key of the stage's block. What the file does not set is left out where it is the default here, too."""
        silent = self.names.keys().isdisjoint(names)
        if not silent or value != OmegaConf.select(
            self.group, key, throw_on_resolution_failure=False
        ):
            self.overrides[f"{self.stage}.{key}"] = value
            self.remark("defaults", *[f"{self.stage}.{key}={value}"] * silent)

    def remark(self, kind: str, *texts: str, setting: str = "") -> None:
        for text in texts:
            self.remarks[kind].setdefault(text.replace("STAGE", self.stage), []).extend(
                [setting] if setting else []
            )

    def refuse(self, name: str, value: Any, reason: str, kind: str = "without") -> None:
        """List a setting without a counterpart, unless its value asks for nothing."""
        text = " ".join(str(value).split())
        if value not in NOTHING:
            text = text if len(text) <= 60 else f"{text[:57]}…"
            self.remark(kind, reason, setting=f"{self.names.get(name, name)}={text}")


def convert(this: Conversion) -> None:
    """Translate the renamed settings of a file, and list those without a counterpart."""
    for note in load_table("common")["notes"] + load_table(this.framework)["notes"]:
        read = this.stage in note.get("stages", this.stage) and this.settings.get(
            note.get("if"), True
        )
        if read and not any(
            this.settings.get(name) for name in note.get("unless", []) if name in this.names
        ):
            this.remark("notes", note["text"])
    for part in (start, evaluations, data, batch, loss, adapter, template):
        part(this)
    for name, key in load_table("common")["settings"].items():
        if (value := this.take(name)) is not None:
            this.put(key, value, name)
    share = this.take("warmup_ratio")  # TRL 1.16 takes a share as steps
    is_read = "warmup_ratio" in this.names or "warmup_steps" not in this.names
    if share and is_read and not this.settings.get("warmup_steps"):
        this.settings["warmup_steps"] = share
        this.names |= {"warmup_steps": "warmup_ratio"} if "warmup_ratio" in this.names else {}
    pass_through(this)


def start(this: Conversion) -> None:
    """Set the model, an SFT checkpoint where no SFT is trained, and the arithmetic."""
    this.overrides = {"sft": "none", this.stage: "default"}  # in place of what the demo sets
    this.overrides["model.path"] = this.take("model_name_or_path", "MODEL")
    if (revision := this.take("model_revision", "main")) != "main":
        this.overrides["model.revision"] = revision
    bf16, checkpointing = this.take("bf16"), this.take("gradient_checkpointing")
    this.put("precision", "auto" if bf16 == "auto" else "bf16" if bf16 else "fp32", "bf16", "fp16")
    if checkpointing is not None:
        kind = Checkpointing.full if checkpointing else Checkpointing.none
        this.put("runtime.gradient_checkpointing", str(kind), "gradient_checkpointing")
    for name in ("project", "entity"):
        if value := this.take(f"wandb_{name}"):
            this.overrides[f"tracker.{name}"] = value
    if isinstance(this.settings.get("save_steps"), int):
        this.put("runtime.save_steps", this.take("save_steps"), "save_steps")


def evaluations(this: Conversion) -> None:
    """Set how often held-out rows are read. Steps between evaluations have no counterpart."""
    names = ("validation_size", "eval_strategy", "evals_per_epoch")
    size, strategy, per_epoch = (this.settings.get(name) for name in names)
    this.take("evals_per_epoch")
    if size == 0 or (strategy in NOTHING and not size):
        this.settings["validation_size"] = 0
        this.put("evaluations", 0, *names)
    elif times := per_epoch or (strategy == "epoch"):
        this.put("evaluations", max(1, round(times * this.settings["num_train_epochs"])), *names)


def data(this: Conversion) -> None:
    """Set the sources of SFT's rows, or the preference set. Held-out rows come from the same sets, by a share."""
    sources = [read_source(this, each) for each in data_sets(this)]
    size = this.settings.get("validation_size")
    share = this.take("validation_size") if size is not None and size < 1 else None
    if this.stage == "sft":
        splits = {"sft": round(1 - share, 6), "validation": share} if share else {"sft": 1}
        own = {} if share is None else {"splits": splits}
        this.overrides |= {"data": "file", "data.sources": [source | own for source in sources]}
        return
    this.overrides |= {"label": "dataset", "label.path": "FILE"}
    this.overrides |= {} if share is None else {"pairs.validation_fraction": share}
    for key, value in sources[0].items() if sources else ():
        if key in ("epochs", "rows"):
            this.refuse(f"datasets.{key}", value, "every preference of the set is read")
        else:
            this.overrides[f"label.{key}"] = value
    for source in sources[1:]:
        name = f"{source['path']} {source.get('hub_split', '')}"
        this.refuse("datasets", name, "one preference set is read. Join the others into its file")


def data_sets(this: Conversion) -> list[Settings]:
    """Return the data sets for training, with the keys of their framework."""
    sets, mixer = [*(this.take("datasets") or ())], (this.take("dataset_mixer") or {}).items()
    for split in this.take("dataset_splits") or ["train"]:
        if "test" in split:
            this.refuse("dataset_splits", split, "held-out rows are a share of those for training")
        else:
            sets += [{"path": path, "weight": weight, "split": split} for path, weight in mixer]
    if path := this.take("dataset_name"):
        sets.append(
            {
                "path": path,
                "name": this.take("dataset_config"),
                "split": this.take("dataset_train_split"),
            }
        )
    names = this.take("dataset", "")
    inner = this.take("dataset_dir", "data")
    rows = this.take("max_samples")
    # of LLaMA-Factory, or a copy of it
    folders = [each / inner for each in (Path(), *this.file.resolve().parents)]
    file = next(
        (each for folder in folders if (each := folder / "dataset_info.json").is_file()), None
    )
    described = json.loads(file.read_text(encoding="utf-8")) if file else {}
    for name in filter(
        None, map(str.strip, names if isinstance(names, list) else names.split(","))
    ):
        entry = {"file_name": name} | described.get(name, {})
        path = entry.pop("hf_hub_url", None) or str(
            (file.parent if file else Path()) / entry["file_name"]
        )
        if name not in described:
            this.remark(
                "notes",
                f"dataset={name} stands in no dataset_info.json here. Type its path in the command",
            )
        sets.append({"path": path, "rows": rows} | entry.pop("columns", {}) | entry)
    return sets


def read_source(this: Conversion, entry: Settings) -> Settings:
    """Return a data set under our keys, without those that only say what its columns tell."""
    common, source, columns = load_table("common"), Settings(path=None), Settings()
    for key, value in entry.items():
        part, _, role = common["source"].get(key, "").partition(".")
        if role:
            columns[role] = value
        elif part and (part, value) not in (("epochs", 1), ("subset", "default"), (part, None)):
            source[part] = value
        elif (
            not part
            and (key != "type" or "chat_template" not in value)
            and key not in common["recognised"]
        ):
            this.refuse(
                f"datasets.{key}",
                value,
                "rows are rendered by the chat template, by the roles of columns",
            )
    if "[" in (split := source.get("hub_split", "")):
        this.refuse(
            "datasets.split",
            split,
            "splits are read whole. A source has rows and epochs for a part",
        )
        source["hub_split"] = split.partition("[")[0]
    return source | ({"columns": columns} if columns else {})


def batch(this: Conversion) -> None:
    """Set the rows of a step, which TRL counts by device and accumulation, and how processes share the model."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    (rows, accumulated), processes, sharding = map(this.take, names), this.processes, Sharding.none
    this.put("batch_size", rows * accumulated * processes, *names)
    this.put("runtime.micro_batch", rows, *names)
    counted = f"STAGE.batch_size is {rows} × {accumulated} accumulated × {processes} processes"
    this.remark("notes", f"{counted}: files do not say how many, convert.processes=N does")
    for name, kind in (("fsdp", Sharding.fsdp), ("deepspeed", Sharding.zero3)):
        if chosen := this.take(name):
            sharding = kind
            if processes == 1 or (
                kind is Sharding.zero3 and not re.search(r"z(ero)?_?3|'stage': 3", str(chosen))
            ):
                this.refuse(
                    name, chosen, f"launch={kind} divides weights too, among convert.processes=N"
                )
    if processes > 1:
        this.overrides["launch"] = "ddp" if sharding is Sharding.none else str(sharding)
        this.overrides["launch.processes"] = processes


def loss(this: Conversion) -> None:
    """Set packing for SFT, and DPO's losses: a weight of SFT's loss on the chosen answers adds a loss."""
    if this.stage == "sft":
        this.put("packing", bool(this.take("packing")), "packing")
    if this.stage != "dpo":
        return
    beta = this.take("beta")
    loss_type = this.take("loss_type", "sigmoid")
    weight = this.take("rpo_alpha")
    losses = [loss_type] if isinstance(loss_type, str) else [*loss_type]
    weights = this.take("loss_weights") or [1.0] * len(losses)
    if losses == [SIMPO] and not weight:
        this.put("simpo_gamma", this.take("simpo_gamma", 0.5), "simpo_gamma")
    elif unknown := [each for each in losses if each not in LOSS_TYPES]:
        this.refuse("loss_type", unknown[0], f"losses are {', '.join(LOSS_TYPES)}")
        losses, weights = ["sigmoid"], [1.0]
    if weight:
        losses, weights = [*losses, "sft"], [*weights, float(weight)]
    this.put("beta", beta, "beta")
    this.put("loss_type", losses, "loss_type", "rpo_alpha")
    if {*weights} != {1.0}:
        this.put("loss_weights", weights, "loss_weights", "rpo_alpha")


def adapter(this: Conversion) -> None:
    """Set the adapter. What remains without one is listed as not read."""
    if not this.take("use_peft"):
        return
    kind = Adapter.qlora if this.take("load_in_4bit") else Adapter.lora
    if kind not in this.block.objective.adapters:
        this.refuse("load_in_4bit", True, "STAGE.adapter=lora keeps 16-bit weights")
        kind = Adapter.lora
    rank = this.take("lora_r")
    ratio = this.take("alpha_per_rank", 1)
    layers = this.take("lora_target_modules")
    this.overrides[f"{this.stage}.adapter"] = str(kind)
    this.put("lora.rank", rank, "lora_r")
    this.put("lora.alpha", this.take("lora_alpha") or rank * ratio, "lora_alpha")
    if layers:
        layers = (
            re.sub("^all$", "all-linear", layers).split(",") if isinstance(layers, str) else layers
        )
        this.put("lora.target_modules", [layer.strip() for layer in layers], "lora_target_modules")
    else:
        this.remark(
            "notes",
            "the file leaves the adapted layers to PEFT. Here all linear layers have an adapter",
        )


def template(this: Conversion) -> None:
    """Set the chat template: by name, or by the marks in a Jinja text."""
    text, name = str(this.take("chat_template", "")), this.take("template")
    chosen = name or next(
        (each for mark, each in load_table("common")["templates"].items() if mark in text), None
    )
    this.refuse(
        "chat_template", text, f"nearest is template={chosen or 'file sft.template.path=FILE'}"
    )
    if chosen:
        this.overrides["template"] = chosen
        this.remark("notes", f"template={chosen} may render or end turns otherwise")


def pass_through(this: Conversion) -> None:
    """Pass on what `trainer` takes under TRL's names and something reads, and list the rest with the reasons."""
    reasons = {name: (f"set STAGE.{key}", "without") for name, key in SET_ELSEWHERE.items()}
    for table in (load_table("common"), load_table(this.framework)):
        for kind in ("without", "neutral"):
            for reason, keys in table.get(kind, {}).items():
                reasons |= dict.fromkeys(keys, (reason, kind))
    reasons |= {
        name: ("STAGE decides it", "without") for name in SET_BY_STAGE if name not in reasons
    }
    arguments, known = vars(this.block.trainer), trl_fields(this.stage)
    others = {name for stage in WITH_TRL for name in trl_fields(stage)} - known.keys()
    named, extra = Settings(), Settings()
    for name, value in this.settings.items():
        is_set = name in this.names
        if name in reasons or name in others:
            if is_set:
                this.refuse(name, value, *reasons.get(name, ("STAGE does not read it",)))
        elif name in known and name in arguments:
            if is_set or value != this.group.trainer.get(name, known[name].default):
                named[name] = value
        elif name in known and is_set:
            extra[name] = value
        elif is_set:
            this.remark("unknown", this.names[name])
    leave_unread_out(this, named)
    for name, value in named.items():
        this.put(f"trainer.{name}", value, name)
    for name, value in extra.items():
        this.put(f"trainer.extra.{name}", value, name)


def leave_unread_out(this: Conversion, named: Settings) -> None:
    """Take the arguments out that none of DPO's losses reads, and list them with a loss that does."""
    if not isinstance(this.block, DPO):
        return
    losses = this.overrides.get("dpo.loss_type", ["sigmoid"])
    block = replace(this.block, loss_type=losses, loss_weights=None)
    while name := unread_argument(replace(block, trainer=DPOArguments(**named))):
        this.refuse(name, named.pop(name), f"dpo.loss_type=[{READ_BY[name][0]}] reads it")
