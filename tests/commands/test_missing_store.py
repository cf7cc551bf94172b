"""Check that commands on results say that a store is missing or empty, and make none."""

from pathlib import Path

import pytest

from stages.config.command_record import Object
from stages.config.commands import commands_on
from tests.helpers import TINY, inside, refused


@pytest.mark.parametrize("stage", commands_on(Object.model, Object.evaluation, Object.store))
def test_a_store_that_does_not_exist_is_refused_and_not_made(stage: str, tmp_path: Path) -> None:
    mistyped = tmp_path / "otuputs"
    message = refused(f"outputs={mistyped}", f"stage={stage}")
    assert f"outputs={mistyped} does not exist" in message and "Correct the path" in message
    assert not mistyped.exists()


@pytest.mark.extended
@pytest.mark.parametrize("stage", commands_on(Object.store)[:1])
def test_a_store_that_does_not_exist_is_not_made_by_hydra(stage: str, tmp_path: Path) -> None:
    mistyped = tmp_path / "otuputs"
    assert inside(f"outputs={mistyped}", f"stage={stage}").returncode == 1
    assert not mistyped.exists()


@pytest.mark.parametrize("stage", commands_on(Object.model, Object.evaluation))
def test_commands_on_results_name_what_makes_one(stage: str, tmp_path: Path) -> None:
    message = refused(f"outputs={tmp_path}", f"stage={stage}", "gate.against=0123456789ab")
    assert "python run.py" in message and "does not exist" not in message


@pytest.mark.extended
def test_a_plan_in_an_empty_store_is_no_error(tmp_path: Path) -> None:
    ran = inside(*TINY, f"outputs={tmp_path}", "stage=plan")
    assert ran.returncode == 0, ran.stderr
    assert "nothing was built" not in ran.stdout
