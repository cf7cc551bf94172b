"""Check that TRL and transformers accept every trainer argument that the configuration accepts."""

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SchedulerType, Trainer, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from trl import DPOConfig, RewardConfig, SFTConfig

from stages.config import trl_arguments
from stages.config.errors import UserError
from tests.helpers import TINY, refused

KINDS = {"sft": SFTConfig, "dpo": DPOConfig, "reward": RewardConfig}
ENUMERATIONS = trl_arguments.enumerations()
VALUES = (
    -1,
    0,
    0.5,
    1,
    7,
    10**30,
    1e30,
    float("nan"),
    float("inf"),
    "bogus",
    True,
    None,
    [1, 2],
    ["a"],
    {"a": 1},
)


def accepted(name: str, key: str, value: Any) -> bool:
    try:
        argument_names = trl_arguments.argument_types(name)
        trl_arguments.validate_values(f"{name}.trainer", {key: value}, argument_names, ENUMERATIONS)
    except UserError as error:
        assert str(error).startswith(f"{name}.trainer.{key}"), error
        return False
    return True


@pytest.mark.parametrize("name", KINDS)
def test_trl_takes_every_value_that_is_let_through(name: str, tmp_path: Path) -> None:
    plain = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "dataloader_num_workers": 1,
    }
    # Arguments that DPO accepts too are only tried with DPO.
    keys = trl_arguments.allowed_arguments(name) - (
        trl_arguments.allowed_arguments("dpo") if name != "dpo" else set()
    )
    tried = 0
    for key in sorted(keys):
        for value in VALUES:
            if accepted(name, key, value):
                KINDS[name](**plain | {key: value})
                tried += 1
    assert tried or name == "sft", "whose only other argument is a word"


@pytest.mark.parametrize("optim", ENUMERATIONS["OptimizerNames"])
def test_an_optimizer_that_is_let_through_is_there(optim: str, tmp_path: Path) -> None:
    if accepted("dpo", "optim", optim):
        args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, optim=optim)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
        kind([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize("word", ENUMERATIONS["SchedulerType"])
def test_a_schedule_that_is_let_through_runs(word: str) -> None:
    options = dict.fromkeys(trl_arguments.SCHEDULES.get(word, ())[-1:], 2)
    if not accepted("dpo", "lr_scheduler_type", word):
        message = refused(*TINY, f"dpo.trainer.lr_scheduler_type={word}")
        assert (
            word in trl_arguments.METRIC_SCHEDULES
            or f"needs {' or '.join(trl_arguments.SCHEDULES[word])}" in message
        )
        if not options:
            return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    get_scheduler(word, optimizer, 1, 10, scheduler_specific_kwargs=options)


@pytest.mark.parametrize("word", trl_arguments.SCHEDULE_OPTIONS)
def test_a_schedule_reads_the_options_that_are_let_through(word: str) -> None:
    parameters = signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(word)]).parameters.keys()
    of_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    assert parameters - of_trainer == {*trl_arguments.SCHEDULE_OPTIONS[word]}


def test_every_schedule_has_its_options() -> None:
    assert trl_arguments.SCHEDULE_OPTIONS.keys() | {*trl_arguments.METRIC_SCHEDULES} == {
        *ENUMERATIONS["SchedulerType"]
    }


def test_the_words_of_trls_texts_are_all_of_them() -> None:
    for key, kind in {"loss_type": SFTConfig, "f_divergence_type": DPOConfig}.items():
        help_text = kind.__dataclass_fields__[key].metadata["help"]
        words = re.findall(r"`'?(\w+)'?`", help_text.partition("Only the loss types")[0])
        assert set(words) == {*trl_arguments.WORDS[key]}
