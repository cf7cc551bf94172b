"""Translate another framework's training settings into overrides.

The tables in `frameworks/` name a framework's keys by TRL's, with its defaults. TRL's own table serves the others too."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from stages.config.blocks.arguments import (
    DPOArguments,
    RewardArguments,
    SFTArguments,
    TrainerArguments,
)
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import LOSS_TYPES, SIMPO, Adapter
from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.config.trainers import READ_BY, SET_BY_STAGE, SET_ELSEWHERE
from stages.preflight.arguments import required_type

# the arguments that are keys of a stage's `trainer`
TYPED = {"sft": SFTArguments, "dpo": DPOArguments, "reward": RewardArguments}

Settings = dict[str, Any]
# values that ask for nothing
NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "no", "none", [], {})
HELD_OUT = "held-out rows are a share: of splits in data.sources, or pairs.validation_fraction"
LORA = "LoRA has no variants here"
NO_ADAPTER = "nothing reads it without an adapter"
END = "the template decides the end of turn, the tokenizer the padding"
# names of DeepSpeed's configurations for ZeRO-3, and its key
ZERO3 = r"z(ero)?_?3|'stage': 3"
PRECISIONS = {True: "bf16", False: "fp32", None: "auto"}
# why a setting has no counterpart, by its name in TRL or, if TRL does not have it, in the framework
REASONS = {
    "trust_remote_code": "Plumbline runs no code of a model",
    "eval_steps": "STAGE.evaluations counts them",
    "data_seed": "set STAGE.seed",
    "use_cpu": "set STAGE.runtime.device=cpu",
    "validation_size": HELD_OUT,
    "dataset_test_split": HELD_OUT,
    "eval_dataset": HELD_OUT,
    "max_steps": "epochs are counted: STAGE.epochs = max_steps × STAGE.batch_size / rows",
    "max_prompt_length": "STAGE.max_length counts prompt and answer together",
    "max_completion_length": "STAGE.max_length counts prompt and answer together",
    "lora_dropout": "adapters have no dropout",
    "lora_r": NO_ADAPTER,
    "lora_alpha": NO_ADAPTER,
    "lora_target_modules": NO_ADAPTER,
    "load_in_4bit": NO_ADAPTER,
    "modules_to_save": "adapters train linear layers alone",
    "lora_modules_to_save": "adapters train linear layers alone",
    "use_dora": LORA,
    "use_rslora": LORA,
    "pissa_init": LORA,
    "loraplus_lr_ratio": LORA,
    "load_in_8bit": "8-bit weights are not offered: adapter=qlora has 4 bits, adapter=lora 16",
    "bnb_4bit_quant_type": "4-bit weights are NF4 with nested quantization",
    "quantization_method": "4-bit weights are NF4 with nested quantization",
    "trained_adapter": "merge the adapter into the model, and name the result",
    "fp16": "bf16 and fp32 are offered",
    "tf32": "bf16 and fp32 are offered",
    "dtype": "weights are trained in fp32, under adapters kept in bf16",
    "special_tokens": END,
    "eos_token": END,
    "pad_token": END,
    "chat_template_path": "template=file sft.template.path=FILE reads a Jinja file with {% generation %} marks",
    "train_on_prompt": "only the assistant's tokens are trained",
    "assistant_only_loss": "only the assistant's tokens are trained",
    "completion_only_loss": "only the assistant's tokens are trained",
    "dataset_text_field": "a source names it, as columns: {text: NAME}",
    "packing": "SFT alone packs rows",
    "mask_history": "sft.turns=last trains the last turn alone",
    "ref_model": "dpo.reference is previous or sft",
    "sync_ref_model": "the reference is the model that training starts from",
    "fsdp_config": "set launch: FSDP2 and ZeRO-3 come with their own settings",
    "plugins": "plugins are not loaded",
    "early_stopping_patience": "the best checkpoint is published, and training is not stopped early",
    "rope_scaling": "the model is used as it is",
}
NOTES = [
    "the batch is a device's rows × accumulated × processes, of which files say nothing: convert.processes=N",
    "a last smaller batch waits for the next epoch here; transformers trains it",
    "a warm-up that is a share takes four steps at least",
    "a template by name may render or end turns otherwise",
]


class Heading(StrEnum):
    """The kinds of remarks below the command, in the order in which they are printed."""

    defaults = "Defaults of that framework where the file is silent"
    without = "Without a counterpart"
    unknown = "Not known to this command, and left out"
    notes = "By design"
    neutral = "Left out, without effect on the result"


@dataclass
class Conversion:
    """The translation of a file. `settings` are those still to be translated, under TRL's names. In keys of
    `overrides`, STAGE is the stage's name."""

    stage: str
    framework: str
    processes: int
    folder: Path  # of the file
    settings: Settings = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # the file's key, by TRL's name
    overrides: Settings = field(default_factory=dict)
    remarks: dict[Heading, list[str]] = field(default_factory=lambda: defaultdict(list))

    def take(self, name: str, default: Any = None) -> Any:
        """Return a setting to translate it, and list it if it is a default of the framework."""
        if name in self.settings and name not in self.names:
            self.remarks[Heading.defaults].append(f"{name}={self.settings[name]}")
        return self.settings.pop(name, default)

    def refuse(self, name: str, value: Any, reason: str) -> None:
        """List a setting without a counterpart, unless its value asks for nothing."""
        if value not in NOTHING:
            text = " ".join(str(value).split())[:60]
            remark = f"{self.names.get(name, name)}={text}: {reason.replace('STAGE', self.stage)}"
            self.remarks[Heading.without].append(remark)


def load_table(name: str) -> Mapping[str, Any]:
    return read_beside(str(Path(__file__).with_name("frameworks") / name))


@cache
def trl_fields(name: str) -> dict[str, Any]:
    """Return the fields of an objective's class in TRL, or of TRL's `model`, by name."""
    import trl

    kind = trl.ModelConfig if name == "model" else OBJECTIVES[name].arguments_class
    return {each.name: each for each in fields(kind)}


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def convert(this: Conversion, file: Settings, where: str) -> None:
    """Translate the settings of a file, and list those without a counterpart. Raise UserError for a text where TRL has a
    number or a switch."""
    rename(this, file)
    validate_types(this, where)
    this.overrides = {"sft": "none", "STAGE": "default"}  # in place of what the demo sets
    this.overrides["model.path"] = this.take("model_name_or_path", "MODEL")
    this.overrides["STAGE.precision"] = PRECISIONS[this.take("bf16")]
    if "gradient_checkpointing" in this.names:
        kind = "full" if this.take("gradient_checkpointing") else "none"
        this.overrides["STAGE.runtime.gradient_checkpointing"] = kind
    if isinstance(this.settings.get("save_steps"), int):  # else it is a share of the training
        this.overrides["STAGE.runtime.save_steps"] = this.take("save_steps")
    for name, key in load_table("trl")["settings"].items():
        if name in this.settings:
            this.overrides[key] = this.take(name)
    warm_up(this)
    evaluations(this)
    data(this)
    batch(this)
    if this.stage == "sft":
        this.overrides["sft.packing"] = this.take("packing")
    if this.stage == "dpo":
        loss(this)
    if this.take("use_peft"):
        adapter(this)
    template(this)
    pass_through(this)
    this.remarks[Heading.notes] += NOTES + load_table(this.framework)["notes"]


def rename(this: Conversion, file: Settings) -> None:
    """Put the file's settings under TRL's names, then the framework's defaults for those that it leaves out."""
    table = load_table(this.framework)
    if this.framework == "trl":
        known = trl_fields("model") | trl_fields(this.stage)
        silent = [name for name in table["silent"] if name in known]
        this.settings = {name: plain(known[name].default) for name in silent}
        if file.get("max_length", 0) is None:  # there it means no limit
            this.refuse("max_length", "null", "STAGE.max_length is always a number")
    this.settings |= table["defaults"]
    mixture = file.pop("dataset_mixture", None) or {}  # nested by the handbook
    for key, value in {**mixture, **file}.items():
        if value is None:
            continue
        implied = {table["rename"].get(key, key): value}
        if key in table["means"]:
            meanings = table["means"][key]
            implied = meanings.get(str(value).lower())
            if implied is None:
                this.refuse(key, value, f"converted are {', '.join(meanings)}")
                continue
        this.settings |= implied
        this.names |= dict.fromkeys(implied, key)


def validate_types(this: Conversion, where: str) -> None:
    """Raise UserError for a text where TRL has a number or a switch."""
    known = trl_fields("model") | trl_fields(this.stage)
    for name, key in this.names.items():
        value = this.settings[name]
        required = required_type(known[name].type, value) if name in known else None
        if required:
            raise UserError(
                f"{where}: {key}={value}: the value must be {required}. Correct the file."
            )


def warm_up(this: Conversion) -> None:
    """Set a share as steps of the warm-up, as TRL 1.16 does."""
    ratio = this.settings.pop("warmup_ratio", None)
    if ratio is None or ("warmup_steps" in this.names and this.settings["warmup_steps"]):
        return
    this.settings["warmup_steps"] = ratio
    this.names["warmup_steps"] = "warmup_ratio"


def evaluations(this: Conversion) -> None:
    """Set how often held-out rows are read. Steps between evaluations have no counterpart."""
    size = this.settings.get("validation_size")
    strategy = this.settings.get("eval_strategy")
    times = this.take("evals_per_epoch", int(strategy == "epoch"))
    if size == 0 or (strategy in NOTHING and not size):
        this.settings["validation_size"] = 0
        this.overrides["STAGE.evaluations"] = 0
    elif times:
        this.overrides["STAGE.evaluations"] = max(1, round(times * this.overrides["STAGE.epochs"]))


def data(this: Conversion) -> None:
    """Set the sources of SFT's rows, or the preference set. Held-out rows come from the same sets, by a share."""
    sources = [read_source(this, entry) for entry in data_sets(this)]
    share = this.settings.get("validation_size", 1)
    is_share = share < 1  # else it is a number of rows
    if is_share:
        del this.settings["validation_size"]
    if this.stage == "sft":
        for source in sources:
            if is_share:
                source["splits"] = {"sft": round(1 - share, 6)}
            if share and is_share:
                source["splits"]["validation"] = share
        this.overrides |= {"data": "file", "data.sources": sources}
        return
    this.overrides |= {"label": "dataset", "label.path": "FILE"}
    if is_share:
        this.overrides["pairs.validation_fraction"] = share
    for source in sources[:1]:
        for name in ("epochs", "rows"):
            this.refuse(f"datasets.{name}", source.pop(name, None), "every preference is read")
        this.overrides |= {f"label.{key}": value for key, value in source.items()}
    for source in sources[1:]:
        name = f"{source['path']} {source.get('hub_split', '')}"
        this.refuse("datasets", name, "one preference set is read. Join the others into its file")


def data_sets(this: Conversion) -> list[Settings]:
    """Return the data sets for training, with the keys of their framework."""
    sets = this.take("datasets", [])
    mixer = this.take("dataset_mixer", {})  # of older files of the handbook
    for split in this.take("dataset_splits", ["train"]):
        if "test" in split:
            this.refuse("dataset_splits", split, HELD_OUT)
            continue
        sets += [{"path": path, "weight": share, "split": split} for path, share in mixer.items()]
    if path := this.take("dataset_name"):
        name = this.take("dataset_config")
        sets.append({"path": path, "name": name, "split": this.take("dataset_train_split")})
    names = this.take("dataset", [])
    if isinstance(names, str):
        names = names.split(",")
    folder = this.take("dataset_dir", "data")
    rows = this.take("max_samples")
    return sets + [listed_set(this, name.strip(), folder) | {"rows": rows} for name in names]


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
    table = load_table("trl")
    source = Settings()
    columns = {}
    for key, value in entry.items():
        if value is None or [key, value] in table["usual"]:
            continue
        if key in table["source"]:
            source[table["source"][key]] = value
        elif key in table["columns"]:
            columns[table["columns"][key]] = value
        elif key not in table["recognised"] and not str(value).startswith("chat_template"):
            reason = "rows are rendered by the chat template, by the roles of columns"
            this.refuse(f"datasets.{key}", value, reason)
    split = source.get("hub_split", "")
    if "[" in split:
        reason = "splits are read whole. A source has rows and epochs for a part"
        this.refuse("datasets.split", split, reason)
        source["hub_split"] = split.partition("[")[0]
    if columns:
        source["columns"] = columns
    return source


def batch(this: Conversion) -> None:
    """Set the rows of a step, which TRL counts by device and accumulation, and how processes share the model."""
    rows = this.take("per_device_train_batch_size")
    steps = this.take("gradient_accumulation_steps")
    this.overrides["STAGE.batch_size"] = rows * steps * this.processes
    this.overrides["STAGE.runtime.micro_batch"] = rows
    launch = "ddp"
    for name, kind in (("fsdp", "fsdp"), ("deepspeed", "zero3")):
        chosen = this.take(name)
        if not chosen:
            continue
        launch = kind
        if this.processes == 1 or (kind == "zero3" and not re.search(ZERO3, str(chosen))):
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
    for name, readers in READ_BY.items():
        if {*losses}.isdisjoint(readers):
            this.refuse(name, this.take(name), f"dpo.loss_type=[{readers[0]}] reads it")
    this.overrides |= {"dpo.beta": this.take("beta"), "dpo.loss_type": losses}
    if {*weights} != {1.0}:
        this.overrides["dpo.loss_weights"] = weights


def adapter(this: Conversion) -> None:
    """Set the adapter. What remains without one is listed as not read."""
    kind = Adapter.lora
    if this.take("load_in_4bit"):
        if Adapter.qlora in OBJECTIVES[this.stage].adapters:
            kind = Adapter.qlora
        else:
            this.refuse("load_in_4bit", True, "STAGE.adapter=lora keeps 16-bit weights")
    rank = this.take("lora_r")
    alpha = this.take("lora_alpha", 2 * rank)  # LLaMA-Factory's default
    this.overrides |= {
        "STAGE.adapter": str(kind),
        "STAGE.lora.rank": rank,
        "STAGE.lora.alpha": alpha,
    }
    if layers := this.take("lora_target_modules"):
        if isinstance(layers, str):
            layers = re.sub("^all$", "all-linear", layers).replace(" ", "").split(",")
        this.overrides["STAGE.lora.target_modules"] = layers


def template(this: Conversion) -> None:
    """Set the chat template: by name, or by the marks in a Jinja text."""
    text = str(this.take("chat_template", ""))
    for mark, name in load_table("trl")["templates"].items():
        if mark in text:
            this.overrides["template"] = name
    nearest = this.overrides.get("template", "file sft.template.path=FILE")
    this.refuse("chat_template", text, f"nearest is template={nearest}")


def pass_through(this: Conversion) -> None:
    """Pass on what `trainer` takes under TRL's names, and list the rest with the reasons."""
    neutral = {*load_table("trl")["neutral"], *load_table(this.framework)["neutral"]}
    elsewhere = {*neutral, *REASONS, *SET_ELSEWHERE, *SET_BY_STAGE}
    typed = {each.name for each in fields(TYPED.get(this.stage, TrainerArguments))}
    others = trl_fields(this.stage).keys() - typed
    for name, value in [*this.settings.items()]:
        if name in typed - elsewhere:
            this.overrides[f"STAGE.trainer.{name}"] = this.take(name)
        elif name in others - elsewhere:
            this.overrides[f"STAGE.trainer.extra.{name}"] = this.take(name)
        elif name not in this.names:
            continue  # a default that this training does not read
        elif name in neutral:
            this.remarks[Heading.neutral].append(f"{this.names[name]}={value}")
        elif name in REASONS:
            this.refuse(name, value, REASONS[name])
        else:
            this.remarks[Heading.unknown].append(this.names[name])
