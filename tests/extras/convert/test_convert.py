"""Tests of `stage=convert`: published files against their settings as read by hand, and what is listed or refused.

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

from stages.cli.resolve import fit_micro_batches
from stages.cli.typed_line import read_values
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.config.schema import Config
from stages.extras.convert import Convert, command
from stages.preflight import constraints
from tests.helpers import inside, refuse_unread, refused, settings
from tests.store.test_bounded_yaml import BEYOND

PUBLISHED = Path(__file__).with_name("published")
PROCESSES = 8
# The packages that a GPU machine has; without them a configuration is refused here.
INSTALLED = re.compile(
    r"needs (DeepSpeed|bitsandbytes)|use_liger_kernel: this needs|the package \w+ is not installed"
)
# Read from the files by hand: rows of a step over eight processes, rates, lengths, losses, adapters, data, template.
EXPECTED: dict[str, dict[str, Any]] = {
    "zephyr_dpo_full": {
        "stage": "dpo",
        "dpo.beta": 0.01,
        "dpo.max_length": 1024,
        "dpo.epochs": 1.0,
        "dpo.seed": 42,
        "dpo.batch_size": 128,
        "dpo.learning_rate": 5e-7,
        "dpo.loss_type": ["sigmoid"],
        "dpo.adapter": "none",
        "dpo.trainer.warmup_steps": 0.1,
        "dpo.trainer.optim": "adamw_torch",
        "sft.train": False,
        "label.path": "HuggingFaceH4/ultrafeedback_binarized",
        "label.hub_split": "train_prefs",
    },
    "llama3_lora_reward": {
        "stage": "reward",
        "reward.batch_size": 64,
        "reward.runtime.micro_batch": 1,
        "reward.epochs": 3.0,
        "reward.max_length": 2048,
        "reward.learning_rate": 1e-4,
        "reward.adapter": "lora",
        "reward.lora.rank": 8,
        "reward.lora.alpha": 16,
        "reward.lora.target_modules": ["all-linear"],
        "reward.precision": "bf16",
        "reward.seed": 42,
        "pairs.validation_fraction": 0.0,
        "reward.evaluations": 0,
        "sft.template.kind": "llama3",
    },
    "llama3_full_sft": {
        "stage": "sft",
        "sft.batch_size": 16,
        "sft.learning_rate": 1e-5,
        "sft.adapter": "none",
        "sft.packing": False,
        "data.sources[1].rows": 1000,
        "data.sources[0].splits": {"sft": 1.0},
        "sft.evaluations": 0,
        "launch.processes": PROCESSES,
    },
    "llama3_dpo_lora": {
        "stage": "dpo",
        "dpo.batch_size": 64,
        "dpo.learning_rate": 2e-4,
        "dpo.epochs": 4.0,
        "dpo.adapter": "lora",
        "dpo.lora.rank": 32,
        "dpo.lora.alpha": 16,
        "dpo.trainer.warmup_steps": 10,
        "label.columns": {"messages": "conversation", "chosen": "chosen", "rejected": "rejected"},
        "pairs.validation_fraction": 0.05,
        "dpo.evaluations": 16,
    },
    "llama31_fsdp": {
        "stage": "sft",
        "sft.batch_size": 64,
        "sft.max_length": 4096,
        "sft.packing": True,
        "sft.seed": 42,
        "sft.trainer.use_liger_kernel": True,
        "data.sources[0].splits": {"sft": 0.98, "validation": 0.02},
        "sft.evaluations": 2,
        "sft.adapter": "none",
    },
}
# Settings of the files that say what silence says there: a default, or what another setting of the file implies.
SAME_AS_SILENCE = {
    "llama3_lora_reward": "stage",
    "llama3_dpo_lora": "rl",
}
LISTED = {  # settings without a counterpart, as read by hand
    "zephyr_dpo_full": ["max_prompt_length=512", "eval_steps=100", "test_split_size=2000"],
    "llama3_lora_reward": ["dataset=dpo_en_demo: type the path", "trust_remote_code=True"],
    "llama3_full_sft": ["deepspeed=examples/deepspeed/ds_z3_config.json: launch=fsdp"],
    "llama3_dpo_lora": ["load_in_8bit=True", "lora_dropout=0.05"],
    "llama31_fsdp": ["fsdp_config", "plugins", "special_tokens"],
}


@lru_cache
def defaults() -> Config:
    return settings("stage=convert", "tracker=none")


def converted(file: Path, stage: str | None = None) -> tuple[list[str], str]:
    """Return the overrides that the command prints, and the text below it."""
    out = io.StringIO()
    with redirect_stdout(out):
        command.run(replace(defaults(), **{"convert": Convert(str(file), stage, PROCESSES)}))
    _, line, *remarks = out.getvalue().strip().split("\n\n")
    return shlex.split(line)[2:], "\n".join(remarks)


def changed(name: str, folder: Path, **settings: Any) -> tuple[list[str], str]:
    """Convert a published example with other settings in it; None leaves a key out."""
    file = OmegaConf.to_container(OmegaConf.load(PUBLISHED / f"{name}.yaml")) | settings
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({key: v for key, v in file.items() if v is not None}))
    return converted(path, EXPECTED[name]["stage"])


def checked(overrides: list[str]) -> Config:
    """Return the configuration of a printed command, checked as if typed except for packages of GPU machines."""
    cfg = settings(*overrides, "tracker=none")
    fit_micro_batches(cfg, read_values(overrides))
    refuse_unread(cfg, overrides)
    try:
        constraints.validate_config(cfg)
    except UserError as error:
        assert all(map(INSTALLED.search, error.messages)), error
    return cfg


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_example_becomes_a_command_with_its_settings(name: str) -> None:
    overrides, remarks = converted(PUBLISHED / f"{name}.yaml", EXPECTED[name]["stage"])
    cfg = OmegaConf.structured(checked(overrides))
    for key, expected in EXPECTED[name].items():
        assert OmegaConf.select(cfg, key) == expected, key
    assert [listed for listed in LISTED[name] if listed not in remarks] == []


@pytest.mark.parametrize("name", ["zephyr_dpo_full", "llama3_lora_reward", "llama3_dpo_lora"])
def test_no_setting_of_a_published_example_is_dropped_in_silence(name: str, tmp_path: Path) -> None:
    """Without a setting, the printed command or a remark differs, unless silence means the same as the setting."""
    file = OmegaConf.to_container(OmegaConf.load(PUBLISHED / f"{name}.yaml"))
    whole = changed(name, tmp_path)
    silent = set[str]()
    for key, value in file.items():
        if value and changed(name, tmp_path, **{key: None}) == whole:
            silent.add(key)
    assert silent == set(SAME_AS_SILENCE.get(name, "").split())


@pytest.mark.parametrize(
    ("name", "settings", "printed"),
    [
        ("zephyr_dpo_full", {"leraning_rate": 1}, "  leraning_rate=1\n"),
        ("zephyr_dpo_full", {"rpo_alpha": 0.2}, "rpo_alpha=0.2: dpo.loss_type=[sigmoid, sft]"),
        ("zephyr_dpo_full", {"lora_r": 8}, "lora_r=8: nothing reads it without an adapter"),
        ("llama3_dpo_lora", {"rl": "ipo"}, "'dpo.loss_type=[ipo]'"),
        ("llama3_dpo_lora", {"adapter": "qlora"}, " dpo.adapter=qlora "),
        ("llama3_dpo_lora", {"chat_template": "x"}, "chat_template=x: converted are chatml, gemma"),
        ("llama3_lora_reward", {"warmup_ratio": None}, "  warmup_steps=0\n"),
        ("llama3_lora_reward", {"warmup_steps": 9}, "warmup_steps=9: warmup_ratio is read"),
        ("llama3_lora_reward", {"val_size": 0.1}, " pairs.validation_fraction=0.1 "),
        ("llama3_lora_reward", {"val_size": 500}, "val_size=500: held-out"),
        ("llama3_full_sft", {"mask_history": True}, "mask_history=True: sft.turns=last"),
        ("llama3_full_sft", {"enable_thinking": False}, "{enable_thinking: false}"),
        ("llama3_full_sft", {"max_samples": 160, "max_steps": 5}, " sft.epochs=0.25 "),
        ("llama3_full_sft", {"max_samples": None, "max_steps": 5}, "sft.epochs=80/ROWS"),
        ("llama3_lora_reward", {"adapter_name_or_path": "A"}, "=A: model.adapter="),
        ("llama3_dpo_lora", {"lora_model_dir": "A"}, "=A: model.adapter="),
        ("llama3_dpo_lora", {"chat_template_jinja": "x"}, "=x: template=file"),
        (
            "llama3_dpo_lora",
            {"val_set_size": None},
            "pairs.validation_fraction=0 dpo.evaluations=0",
        ),
        ("zephyr_dpo_full", {"ref_model": "M"}, "ref_model=M: dpo.reference"),
    ],
)
def test_a_setting_is_translated_or_listed_with_the_nearest(
    name: str, settings: dict[str, Any], printed: str, tmp_path: Path
) -> None:
    overrides, remarks = changed(name, tmp_path, **settings)
    assert printed in f"{shlex.join(overrides)} \n{remarks}\n"


def test_what_changes_the_training_stands_apart_from_what_does_not(tmp_path: Path) -> None:
    lists = ("what is trained:", "nothing that is trained:")
    _, remarks = changed("llama3_dpo_lora", tmp_path, mask_history=True, leraning_rate=1)
    changing, harmless = remarks.split("\nNot converted")[1:]
    assert changing.splitlines()[0].endswith(lists[0])
    assert harmless.splitlines()[0].endswith(lists[1])
    for key in ("lora_dropout=", "special_tokens=", "mask_history=", "leraning_rate="):
        assert key in changing and key not in harmless
    for key in ("output_dir=", "saves_per_epoch=", "logging_steps=", "datasets.roles="):
        assert key in harmless and key not in changing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "no KEY: VALUE at its top level"),
        ("a: [1\n", "line 2, column 1"),
        ("name: x\nversion: 2\n", "configures no training"),
        ("rl: dpo\nsequence_len: 9\nmicro_batch_size: few\n", "axolotl reads another kind"),
        ("learning_rate: 1e-5\noutput_dir: x\n", "Type convert.stage=sft|dpo|reward"),
        ("stage: ppo\ntemplate: llama3\n", "training=ppo: ppo is not a known value"),
    ],
)
def test_a_file_that_is_no_training_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"convert.file={file}: ")) as refusal:
        converted(file)
    assert message in str(refusal.value)


@pytest.mark.slow
def test_the_printed_command_trains(tmp_path: Path) -> None:
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
    file = tmp_path / "file.yaml"
    store = f"outputs={tmp_path / 'outputs'}"
    file.write_text(yaml.safe_dump(training))
    ran = inside(
        "stage=convert", "convert.stage=dpo", f"convert.file={file}", "tracker=none", store
    )
    assert ran.returncode == 0, ran.stderr
    command = shlex.split(
        next(line for line in ran.stdout.splitlines() if line.startswith("python run.py"))
    )[2:]
    line = [each for each in command if not each.startswith(("model.path=", "sft="))]
    ran = inside(*line, "recipe=tiny", "tracker=none", "precision=fp32", store)
    assert ran.returncode == 0, ran.stderr
    config = json.loads((tmp_path / "outputs" / "latest" / "dpo" / "manifest.json").read_text())[
        "config"
    ]
    assert (config["beta"], config["seed"], config["batch_size"]) == (0.3, 3, 4)


@pytest.mark.parametrize(("text", "place"), BEYOND.values(), ids=BEYOND)
def test_a_file_beyond_all_bounds_is_refused_with_its_line(
    text: str, place: str, tmp_path: Path
) -> None:
    file = tmp_path / "beyond.yaml"
    file.write_text(text)
    line = refused(f"convert.file={file}", "stage=convert")
    assert line.startswith(f"convert.file={file}: ") and place in line


@pytest.mark.parametrize("text", ["9" * 5000, "!!python/object:os.system x"])
def test_a_value_that_yaml_cannot_build_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(f"a: {text}\n")
    assert refused(f"convert.file={file}", "stage=convert").startswith("convert.file=")
