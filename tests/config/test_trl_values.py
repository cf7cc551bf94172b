"""Check that TRL and transformers accept every trainer argument that the configuration accepts."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames
from trl import DPOConfig

from stages.cli.settings import settings_of
from stages.config import choices
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError
from stages.config.limits import ONE_OF, validate_block
from stages.config.trainers import validate_trainer
from stages.preflight.arguments import require_accepted_arguments, warn_of_dropped_arguments
from stages.store.sealed_json import warn_once
from stages.store.store import Store
from tests.helpers import TINY, nodes, settings

VALUES: tuple[Any, ...] = (-1, 0, 0.5, 1, 7, 1e30, float("nan"), float("inf"), "bogus", True, None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_trl_takes_every_value_that_is_let_through(name: str, tmp_path: Path) -> None:
    kind = OBJECTIVES[name].arguments_class
    plain = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    block = type(vars(settings(*TINY))[name].trainer)
    tried = 0
    for field in fields(block):
        for value in (*VALUES, *field.metadata.get(ONE_OF, ())):
            try:
                typed = OmegaConf.merge(OmegaConf.structured(block), {field.name: value})
                arguments: Any = OmegaConf.to_object(typed)
                validate_block(arguments)
            except (UserError, OmegaConfBaseException):
                continue
            if field.name != "optim":  # see below
                kind(**plain | arguments.given)
                tried += 1
    assert tried > 20


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_number_that_null_stands_for_is_trls_default(name: str) -> None:
    block: Any = type(vars(settings(*TINY))[name].trainer)
    defaults = {field.name: field.default for field in fields(OBJECTIVES[name].arguments_class)}
    assert block().max_grad_norm == defaults["max_grad_norm"]
    compared = 0
    comments = {each.field.name: each.comment for each in settings_of(block)}
    for key, comment in comments.items():
        said = re.search(r"null: ([\d.e-]+)$", comment)
        if said and defaults[key] is not None:
            assert float(said[1]) == defaults[key], key
            compared += 1
    assert compared > 3


def weight_after_one_step(folder: Path, max_grad_norm: float | None) -> float:
    """Return a weight after one step of size 1, from 0 and with a gradient of -100."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.register_forward_hook(lambda *parts: {"loss": -100 * parts[-1].sum()})
    given = DPOArguments(max_grad_norm=max_grad_norm, optim="sgd").given
    arguments = TrainingArguments(
        str(folder), use_cpu=True, learning_rate=1.0, max_steps=1, report_to="none", **given
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input": torch.ones(1)}],  # type: ignore[arg-type]  # a list suffices
        data_collator=lambda rows: rows[0],
    )
    trainer.train()
    return model.weight.item()


def test_no_limit_of_the_gradient_norm_clips_nothing(tmp_path: Path) -> None:
    assert weight_after_one_step(tmp_path, None) == 100
    assert weight_after_one_step(tmp_path, 1.0) == pytest.approx(1)


def refusal(*overrides: str) -> str:
    """Return how the arguments of dpo are refused, or an empty string."""
    node = nodes(Path("outputs"), *overrides)["dpo"]
    try:
        validate_block(node.config, "dpo.")
        validate_trainer("dpo", node.config)
        require_accepted_arguments(node, Store(Path("outputs")))
    except UserError as error:
        assert str(error).startswith("dpo.trainer"), error
        return str(error)
    return ""


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames])
def test_an_optimizer_that_is_let_through_is_there(optim: str, tmp_path: Path) -> None:
    if not refusal(f"dpo.trainer.optim={optim}"):
        args = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, optim=optim)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(2, 2))
        kind([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize("word", [schedule.value for schedule in SchedulerType])
def test_a_schedule_that_is_let_through_runs(word: str) -> None:
    if not refusal(f"dpo.trainer.lr_scheduler_type={word}"):
        assert word not in choices.SCHEDULES_WITH_OPTIONS
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
        get_scheduler(word, optimizer, 1, 10)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("sft.trainer.label_smoothing_factor=0.1", "sft.trainer.label_smoothing_factor=0.1"),
        ("dpo.trainer.use_liger_kernel=true", "dpo.trainer.use_liger_kernel=true"),
        ("dpo.trainer.use_liger_kernel=false", None),
        ("kto.trainer.use_liger_kernel=true", None),  # this run trains none
    ],
)
def test_an_argument_that_the_next_trl_drops_is_a_warning(
    typed: str, named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    warn_of_dropped_arguments(settings(*TINY, typed))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.startswith(f"warning: {named}: TRL 2.0 ") for line in lines] == [True] * bool(
        named
    )
