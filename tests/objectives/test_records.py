"""Tests that the record of every objective agrees with its block, its files and TRL."""

from dataclasses import fields

import pytest

from stages.config.blocks.training import OBJECTIVES
from stages.config.installation import ROOT
from stages.config.schema import CONF
from stages.config.stage_table import STAGES, Target
from tests.helpers import settings


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_a_stage_a_file_and_a_group(name: str) -> None:
    for path in (
        ROOT / "stages" / f"{name}.py",
        ROOT / "stages/objectives" / f"{name}.py",
        CONF / name / "default.yaml",
    ):
        assert path.is_file()
    assert name in {*Target}
    assert STAGES[name].next in {*Target}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_record_names_keys_and_arguments_that_exist(name: str) -> None:
    block, objective = vars(settings())[name], OBJECTIVES[name]
    arguments = [field.name for field in fields(objective.arguments_class)]
    assert block.objective is objective
    assert type(block).__name__.lower() == name.replace("_", "")
    keys = {field.name for field in fields(block)}
    assert {*vars(block.trainer)} - {"extra"} <= {*arguments}
    assert {*objective.typed} <= {*arguments} and {*objective.typed.values()} <= keys
    for key in objective.of_loss:
        argument = key.removeprefix("trainer.")
        assert argument in (keys if argument == key else arguments)
    assert block.adapter in objective.adapters
