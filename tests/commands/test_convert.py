"""Tests of `stage=convert`: ten published files against their settings as read by hand, and what is listed or refused.

The files in `published/` have the settings of examples of TRL's (alignment-handbook), axolotl and LLaMA-Factory, in
alphabetical order, with their source in the first line.
"""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from stages.cli import compose
from stages.cli.spelling import typed_values
from stages.commands import convert
from stages.commands.conversion import Heading, trl_fields
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.config.schema import Config, Convert
from stages.preflight import constraints
from tests.helpers import inside, refuse_unread, refused, settings, slow_but

PUBLISHED = Path(__file__).with_name("published")
PROCESSES = 8
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The packages that a GPU machine has; without them a configuration is refused here.
INSTALLED = re.compile(
    r"needs (DeepSpeed|bitsandbytes)|use_liger_kernel: this needs|the package \w+ is not installed"
)
LLAMA_SFT = {
    "sft.batch_size": 2 * 4 * PROCESSES,
    "sft.max_length": 4096,
    "sft.packing": True,
    "sft.seed": 42,
}
ZEPHYR = {
    "dpo.beta": 0.01,
    "dpo.max_length": 1024,
    "dpo.epochs": 1.0,
    "dpo.seed": 42,
    "dpo.trainer.warmup_steps": 0.1,
}
LLAMA_LORA = {
    "batch_size": 8 * PROCESSES,
    "epochs": 3.0,
    "max_length": 2048,
    "adapter": "lora",
    "lora.rank": 8,
}
LLAMA_LORA |= {
    "lora.alpha": 16,
    "lora.target_modules": ["all-linear"],
    "precision": "bf16",
    "evaluations": 0,
}
LLAMA_LORA |= {
    "trainer.lr_scheduler_type": "cosine",
    "trainer.warmup_steps": 0.1,
    "runtime.micro_batch": 1,
}
# Read from the files by hand: rows of a step over eight processes, rates, lengths, losses, adapters, data, template.
EXPECTED: dict[str, dict[str, Any]] = {
    "zephyr_sft_full": {
        **{
            "stage": "sft",
            "sft.batch_size": 128,
            "sft.learning_rate": 2e-5,
            "sft.epochs": 1.0,
            "sft.max_length": 2048,
        },
        **{
            "sft.adapter": "none",
            "sft.packing": False,
            "sft.evaluations": 1,
            "sft.template.kind": "zephyr",
        },
        **{
            "sft.trainer.lr_scheduler_type": "cosine",
            "sft.trainer.warmup_steps": 0.1,
            "sft.precision": "bf16",
        },
        **{
            "model.path": "mistralai/Mistral-7B-v0.1",
            "launch.sharding": "none",
            "data.tasks.sft": None,
        },
        "data.sources[1].hub_split": "test_sft",
    },
    "zephyr_dpo_full": {
        **{
            "stage": "dpo",
            **ZEPHYR,
            "dpo.batch_size": 128,
            "dpo.learning_rate": 5e-7,
            "dpo.loss_type": ["sigmoid"],
        },
        **{
            "dpo.adapter": "none",
            "sft.train": False,
            "dpo.trainer.optim": "adamw_torch",
            "dpo.loss_weights": None,
        },
        **{"label.path": "HuggingFaceH4/ultrafeedback_binarized", "label.hub_split": "train_prefs"},
        **{"pairs.min_score": 0.0, "pairs.strategy": "all", "pairs.max_length_ratio": None},
    },
    "zephyr_dpo_qlora": {
        **{
            "stage": "dpo",
            **ZEPHYR,
            "dpo.batch_size": 32,
            "dpo.learning_rate": 5e-6,
            "dpo.adapter": "qlora",
        },
        **{"dpo.lora.rank": 16, "dpo.lora.alpha": 16, "dpo.lora.target_modules": LINEAR},
        **{"dpo.trainer.optim": "paged_adamw_32bit", "dpo.runtime.gradient_checkpointing": "full"},
    },
    "smollm3_apo": {
        **{
            "stage": "dpo",
            "dpo.batch_size": 16,
            "dpo.learning_rate": 1e-6,
            "dpo.beta": 0.05,
            "dpo.epochs": 1.0,
        },
        **{
            "dpo.loss_type": ["apo_zero"],
            "dpo.max_length": 24576,
            "dpo.evaluations": 0,
            "model.revision": "it-SFT",
        },
        **{"dpo.trainer.max_grad_norm": 0.2, "dpo.trainer.lr_scheduler_kwargs.min_lr_rate": 0.1},
        **{
            "label.subset": "Preference",
            "pairs.validation_fraction": 0.0,
            "dpo.runtime.save_steps": 100,
        },
    },
    "llama3_lora_dpo": {
        **{f"dpo.{key}": value for key, value in LLAMA_LORA.items()},
        **{
            "stage": "dpo",
            "dpo.beta": 0.1,
            "dpo.loss_type": ["sigmoid"],
            "dpo.learning_rate": 5e-6,
        },
        **{"sft.template.kind": "llama3", "launch.sharding": "none", "sft.train": False},
    },
    "llama3_lora_reward": {
        **{f"reward.{key}": value for key, value in LLAMA_LORA.items()},
        **{
            "stage": "reward",
            "reward.learning_rate": 1e-4,
            "sft.template.kind": "llama3",
            "reward.seed": 42,
        },
    },
    "llama3_full_sft": {
        **{
            "stage": "sft",
            "sft.batch_size": 16,
            "sft.learning_rate": 1e-5,
            "sft.epochs": 3.0,
            "sft.max_length": 2048,
        },
        **{
            "sft.adapter": "none",
            "sft.packing": False,
            "launch.sharding": "zero3",
            "sft.template.kind": "llama3",
        },
        **{
            "data.sources[0].rows": 1000,
            "data.sources[1].rows": 1000,
            "data.sources[0].splits": {"sft": 1.0},
        },
    },
    "llama3_dpo_lora": {
        **{
            "stage": "dpo",
            "dpo.batch_size": 64,
            "dpo.learning_rate": 2e-4,
            "dpo.epochs": 4.0,
            "dpo.max_length": 4096,
        },
        **{"dpo.beta": 0.1, "dpo.adapter": "lora", "dpo.lora.rank": 32, "dpo.lora.alpha": 16},
        **{
            "dpo.trainer.warmup_steps": 10,
            "dpo.trainer.optim": "adamw_bnb_8bit",
            "dpo.trainer.weight_decay": 0.0,
        },
        **{"pairs.validation_fraction": 0.05, "dpo.evaluations": 16, "sft.template.kind": "llama3"},
        "label.columns": {"messages": "conversation", "chosen": "chosen", "rejected": "rejected"},
    },
    "llama3_qlora": {
        **{
            "stage": "sft",
            **LLAMA_SFT,
            "sft.learning_rate": 2e-4,
            "sft.epochs": 4.0,
            "sft.adapter": "qlora",
        },
        **{"sft.lora.rank": 32, "sft.lora.alpha": 16, "sft.lora.target_modules": ["all-linear"]},
        **{
            "sft.evaluations": 0,
            "data.sources[0].splits": {"sft": 1.0},
            "sft.template.kind": "auto",
        },
    },
    "llama31_fsdp": {
        **{
            "stage": "sft",
            **LLAMA_SFT,
            "sft.learning_rate": 2e-5,
            "sft.epochs": 1.0,
            "launch.sharding": "fsdp",
        },
        **{
            "sft.trainer.warmup_steps": 100,
            "sft.trainer.use_liger_kernel": True,
            "sft.evaluations": 2,
        },
        **{
            "data.sources[0].splits": {"sft": 0.98, "validation": 0.02},
            "data.sources[0].hub_split": "train",
        },
        **{"launch.processes": PROCESSES, "sft.template.kind": "llama3", "sft.adapter": "none"},
    },
}
# Settings of the files that say what silence says there: a default, or what another setting of the file implies.
LIGER = "liger_rope liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy"
SAME_AS_SILENCE = {
    "zephyr_sft_full": "max_steps",
    "llama3_lora_dpo": "stage pref_loss",
    "llama3_lora_reward": "stage",
    "llama3_full_sft": "stage",
    "llama3_dpo_lora": "rl",
    "llama3_qlora": "evals_per_epoch load_in_4bit",
    "llama31_fsdp": LIGER,
}
LISTED = {  # settings without a counterpart, as read by hand
    "zephyr_sft_full": ["chat_template", "torch_dtype=bfloat16", "test_split_size=1000"],
    "zephyr_dpo_full": [
        "max_prompt_length=512",
        "eval_steps=100",
        "datasets=HuggingFaceH4/ultrafeedback_binarized",
    ],
    "zephyr_dpo_qlora": ["lora_dropout=0.05", "torch_dtype=float16", "dataset_splits=test_prefs"],
    "smollm3_apo": [
        "trust_remote_code=True",
        "datasets.epochs=0.5",
        "datasets=HuggingFaceTB/smoltalk2",
    ],
    "llama3_lora_dpo": ["datasets.rows=1000", "trust_remote_code=True"],
    "llama3_lora_reward": ["datasets.rows=1000", "trust_remote_code=True"],
    "llama3_full_sft": ["trust_remote_code=True"],
    "llama3_dpo_lora": ["load_in_8bit=True", "lora_dropout=0.05", "special_tokens"],
    "llama3_qlora": ["datasets.type=alpaca", "lora_dropout=0.05", "special_tokens"],
    "llama31_fsdp": ["datasets.split=train[:20%]", "fsdp_config", "plugins", "special_tokens"],
}


@lru_cache
def defaults() -> Config:
    return settings("stage=convert", "tracker=none")


@lru_cache
def converted(
    file: Path, processes: int = 1, stage: str | None = None
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides that the command prints, and its remarks by heading."""
    out = io.StringIO()
    with redirect_stdout(out):
        convert.run(replace(defaults(), convert=Convert(str(file), stage, processes)))
    _, command, *parts = out.getvalue().strip().split("\n\n")
    headings = {
        part.partition(":\n")[0]: re.findall(r"^  (.*)", part, re.MULTILINE) for part in parts
    }
    return shlex.split(command)[2:], headings


def checked(overrides: list[str]) -> Config:
    """Return the configuration of a printed command, checked as if typed except for packages of GPU machines."""
    cfg = settings(*overrides, "tracker=none")
    compose.fit_micro_batches(cfg, typed_values(overrides))
    refuse_unread(cfg, overrides)
    try:
        constraints.validate_config(cfg)
    except UserError as error:
        assert all(map(INSTALLED.search, error.messages)), error
    return cfg


def write(folder: Path, text: str) -> Path:
    """Write a training file under a name of its own, as conversions are cached."""
    file = folder / f"{len([*folder.iterdir()])}.yaml"
    file.write_text(text)
    return file


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUMBLINE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def without(
    name: str, changed: dict[str, Any], folder: Path
) -> tuple[list[str], dict[str, list[str]]]:
    """Convert a published example with other settings in it; None leaves a key out."""
    file = OmegaConf.to_container(OmegaConf.load(PUBLISHED / f"{name}.yaml")) | changed
    left = {key: value for key, value in file.items() if value is not None}
    return converted(write(folder, yaml.safe_dump(left)), stage=EXPECTED[name]["stage"])


def value_of(overrides: list[str], key: str) -> str | None:
    return next((each.partition("=")[2] for each in overrides if each.startswith(f"{key}=")), None)


# The other four are the files of the tests below.
QUICK = (
    "zephyr_dpo_qlora",
    "smollm3_apo",
    "llama3_lora_reward",
    "llama3_full_sft",
    "llama3_dpo_lora",
    "llama31_fsdp",
)


@pytest.mark.parametrize("name", slow_but(EXPECTED, *QUICK))
def test_a_published_example_becomes_a_command_with_its_settings(name: str) -> None:
    overrides, remarks = converted(PUBLISHED / f"{name}.yaml", PROCESSES)
    cfg = OmegaConf.structured(checked(overrides))
    values = {key: OmegaConf.select(cfg, key) for key in EXPECTED[name]}
    assert {
        key: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for key, v in values.items()
    } == EXPECTED[name]
    assert Heading.unknown not in remarks
    listed = " ".join(remarks[Heading.without])
    assert [key for key in LISTED[name] if key not in listed] == []


@pytest.mark.parametrize(
    "name", slow_but(EXPECTED, "zephyr_dpo_qlora", "llama3_full_sft", "llama31_fsdp")
)
def test_no_setting_of_a_published_example_is_dropped_in_silence(name: str, folder: Path) -> None:
    """Without a setting, the printed command or a remark differs, unless silence means the same as the setting."""
    file = OmegaConf.to_container(OmegaConf.load(PUBLISHED / f"{name}.yaml"))
    whole = converted(PUBLISHED / f"{name}.yaml")
    silent = {
        key for key, value in file.items() if value and without(name, {key: None}, folder) == whole
    }
    assert silent == set(SAME_AS_SILENCE.get(name, "").split())


def test_a_margin_of_simpo_is_no_unknown_setting_beside_another_loss(folder: Path) -> None:
    _, remarks = without("llama3_lora_dpo", {"simpo_gamma": 0.4}, folder)
    assert [
        text for text, lines in remarks.items() if any("simpo_gamma=0.4" in line for line in lines)
    ] == [Heading.neutral]


def test_a_length_without_a_limit_is_told(folder: Path) -> None:
    file = OmegaConf.to_container(OmegaConf.load(PUBLISHED / "zephyr_dpo_full.yaml")) | {
        "max_length": None
    }
    _, remarks = converted(write(folder, yaml.safe_dump(file)), stage="dpo")
    assert any("max_length=null" in line for lines in remarks.values() for line in lines)


def test_defaults_of_the_framework_stand_in_where_the_file_is_silent(folder: Path) -> None:
    silent = dict.fromkeys(
        ("lr_scheduler_type", "warmup_ratio", "num_train_epochs", "bf16", "max_length")
    )
    cfg = checked(without("zephyr_dpo_full", silent, folder)[0])
    trl = {name: field.default for name, field in trl_fields("dpo").items()}
    assert (cfg.dpo.epochs, cfg.dpo.max_length) == (trl["num_train_epochs"], trl["max_length"])
    assert cfg.dpo.trainer.lr_scheduler_type == trl["lr_scheduler_type"] == "linear"
    assert cfg.dpo.trainer.warmup_steps == trl["warmup_steps"] == 0
    overrides, remarks = without(
        "llama3_lora_dpo", {"pref_beta": None, "lora_rank": None, "warmup_ratio": None}, folder
    )
    assert {"warmup_steps=0", "lora_r=8"} <= {*remarks[Heading.defaults]}
    assert checked(overrides).dpo.beta == 0.1
    overrides, remarks = without(
        "llama3_qlora", {"warmup_steps": None, "sequence_len": None}, folder
    )
    assert {"warmup_steps=0.03", "max_length=512"} <= {*remarks[Heading.defaults]}
    assert any("at most 100 steps" in note for note in remarks[Heading.notes])


@pytest.mark.parametrize(
    ("name", "changed", "key", "value"),
    [
        ("zephyr_dpo_full", {"rpo_alpha": 0.2}, "dpo.loss_weights", "[1.0, 0.2]"),
        ("llama3_lora_dpo", {"pref_ftx": 0.5}, "dpo.loss_type", "[sigmoid, sft]"),
        ("llama3_dpo_lora", {"rl": "ipo"}, "dpo.loss_type", "[ipo]"),
        ("llama3_lora_dpo", {"pref_loss": "simpo", "simpo_gamma": 0.4}, "dpo.simpo_gamma", "0.4"),
        ("llama3_lora_dpo", {"pref_loss": "simpo"}, "dpo.loss_type", "[simpo]"),
        ("llama3_qlora", {"warmup_steps": 0}, "sft.trainer.warmup_steps", "0"),
        (
            "llama3_lora_dpo",
            {"lora_target": "q_proj, v_proj"},
            "dpo.lora.target_modules",
            "[q_proj, v_proj]",
        ),
        ("llama3_lora_dpo", {"quantization_bit": 4}, "dpo.adapter", "qlora"),
        ("llama3_lora_dpo", {"finetuning_type": "full"}, "dpo.adapter", None),
        ("llama3_lora_dpo", {"val_size": 0.1}, "pairs.validation_fraction", "0.1"),
        ("llama3_full_sft", {"neat_packing": True}, "sft.packing", "true"),
        ("zephyr_sft_full", {"learning_rate": "3e-6"}, "sft.learning_rate", "3e-06"),
        ("zephyr_sft_full", {"bf16": None, "fp16": True}, "sft.precision", "bf16"),
    ],
)
def test_a_setting_that_means_several_keys_is_translated(
    name: str, changed: dict[str, Any], key: str, value: str | None, folder: Path
) -> None:
    overrides, _ = without(name, changed, folder)
    checked(overrides)
    assert value_of(overrides, key) == value


@pytest.mark.parametrize(
    ("name", "changed", "listed", "way_out"),
    [
        ("llama3_lora_dpo", {"pref_loss": "simpo", "pref_ftx": 0.5}, "pref_loss=simpo", "sigmoid"),
        ("llama3_lora_dpo", {"finetuning_type": "freeze"}, "finetuning_type=freeze", "lora, full"),
        (
            "llama3_lora_reward",
            {"quantization_bit": 4},
            "quantization_bit=True",
            "reward.adapter=lora",
        ),
        (
            "zephyr_dpo_full",
            {"label_smoothing": 0.1},
            "label_smoothing=0.1",
            "dpo.loss_type=[robust]",
        ),
        ("zephyr_dpo_full", {"lora_r": 8}, "lora_r=8", "adapter"),
        ("zephyr_dpo_full", {"max_steps": 500}, "max_steps=500", "dpo.epochs"),
        ("zephyr_dpo_full", {"bf16": 3}, "bf16=3", "true, false"),
        (
            "llama3_full_sft",
            {"deepspeed": "ds_z2_config.json"},
            "deepspeed=ds_z2_config.json",
            "launch=zero3",
        ),
        ("llama3_qlora", {"train_on_inputs": True}, "train_on_inputs=True", "assistant"),
    ],
)
def test_a_setting_without_a_counterpart_is_listed_with_the_nearest(
    name: str, changed: dict[str, Any], listed: str, way_out: str, folder: Path
) -> None:
    overrides, remarks = without(name, changed, folder)
    checked(overrides)
    (line,) = (line for line in remarks[Heading.without] if listed in line)
    assert way_out in line


def test_the_project_of_the_tracker_is_taken_over(folder: Path) -> None:
    overrides, _ = without("llama3_lora_dpo", {"wandb_project": "mine"}, folder)
    assert value_of(overrides, "tracker.project") == "mine"


def test_an_unknown_key_is_listed_as_unknown(folder: Path) -> None:
    assert without("zephyr_dpo_full", {"leraning_rate": 1}, folder)[1][Heading.unknown] == [
        "leraning_rate"
    ]


def test_names_of_llama_factory_are_looked_up_in_its_list_of_data_sets(folder: Path) -> None:
    (folder / "data").mkdir()
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    entry = {"hf_hub_url": "someone/pairs", "ranking": True, "subset": "en", "columns": columns}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"dpo_en_demo": entry}))
    overrides, _ = without("llama3_lora_dpo", {}, folder)
    assert checked(overrides).label.columns == columns
    assert (value_of(overrides, "label.path"), value_of(overrides, "label.subset")) == (
        "someone/pairs",
        "en",
    )


def test_a_list_of_data_sets_is_read_and_a_list_for_a_word_is_told(folder: Path) -> None:
    overrides, remarks = without(
        "llama3_lora_dpo", {"dataset": ["first.json", "second.json"]}, folder
    )
    assert value_of(overrides, "label.path") == "first.json"
    assert any("second.json" in line for line in remarks[Heading.without])
    assert any(
        "chatml" in line
        for line in without("llama3_lora_dpo", {"template": ["chatml"]}, folder)[1][Heading.without]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "no KEY: VALUE at its top level"),
        ("a: [1\n", "line 2, column 1"),
        (
            "beta: 0.1\nlearning_rate: 1e-5\nbeta: 0.2\n",
            "found duplicate key beta",
        ),
        ("name: x\nversion: 2\n", "configures no training"),
        ("beta: 0.1\nper_device_train_batch_size: few\n", "trl reads another kind of value"),
        ("learning_rate: 1e-5\noutput_dir: x\n", "Type convert.stage=sft|dpo|reward"),
        ("learning_rate: 1e-5\nbeta: 0.1\ndataset_mixture: [a]\n", "Correct it, or leave it out."),
        (
            "learning_rate: 1e-5\nbeta: 0.04\nnum_generations: 8\n",
            "training=grpo: grpo is not a known value",
        ),
        ("learning_rate: 1e-5\nbeta: 0.1\nloss_type: dapo\n", "training=grpo"),
        ("learning_rate: 1e-5\nbeta: 0.1\ndesirable_weight: 1.0\n", "training=kto"),
        ("learning_rate: 1e-5\nbeta: 0.1\nloss_type: kto\n", "training=kto"),
        ("stage: ppo\ntemplate: llama3\n", "training=ppo: ppo is not a known value"),
    ],
)
def test_a_file_that_is_no_training_is_refused_with_its_line(
    text: str, message: str, folder: Path
) -> None:
    file = write(folder, text)
    line = refused("stage=convert", f"convert.file={file}", "tracker=none")
    assert f"convert.file={file}: " in line
    assert message in line


def test_a_missing_file_is_refused(folder: Path) -> None:
    assert "Type convert.file=FILE" in refused("stage=convert", "tracker=none")
    assert "No such file" in refused(
        "stage=convert", f"convert.file={folder / 'none.yaml'}", "tracker=none"
    )


@pytest.mark.slow
def test_the_printed_command_trains(folder: Path) -> None:
    """TRL's file for DPO on a file of preferences, by the model of recipe=tiny, from conversion to weights."""
    training = {
        "beta": 0.3,
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
    }
    training |= {
        "dataset_name": str(ROOT / "docs" / "examples" / "preferences.jsonl"),
        "max_length": 512,
        "seed": 3,
    }
    file, store = write(folder, yaml.safe_dump(training)), f"outputs={folder / 'outputs'}"
    ran = inside("stage=convert", f"convert.file={file}", "tracker=none", store)
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(
        next(line for line in ran.stdout.splitlines() if line.startswith("python run.py"))
    )[2:]
    line = [each for each in command if not each.startswith(("model.path=", "sft="))]
    ran = inside(*line, "recipe=tiny", "tracker=none", "precision=fp32", store)
    assert ran.returncode == 0, ran.stderr
    config = json.loads((folder / "outputs" / "latest" / "dpo" / "manifest.json").read_text())[
        "config"
    ]
    assert (config["beta"], config["seed"], config["batch_size"]) == (0.3, 3, 4)
