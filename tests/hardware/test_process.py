"""Tests of the preparation of a process at its start."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from stages.config.installation import ROOT
from stages.hardware import process
from stages.tracking import wandb
from tests.helpers import SECRET


@pytest.mark.slow
def test_a_mode_in_the_environment_is_heard_by_wandb_alone() -> None:
    """transformers would print a message about it at import, with any tracker."""
    with mock.patch.dict(os.environ, {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET}):
        process.prepare()
        assert wandb.choose_mode() == "offline"
        code = "from transformers.integrations import integration_utils"
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert ran.stdout == ""


@pytest.mark.parametrize("own", [None, *process.ALLOCATOR])
def test_segments_of_gpu_memory_grow_unless_the_user_chose(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in process.ALLOCATOR:
        monkeypatch.delenv(variable, raising=False)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    process.prepare()
    settings = {
        variable: os.environ[variable] for variable in process.ALLOCATOR if variable in os.environ
    }
    assert settings == (
        {own: "max_split_size_mb:64"} if own else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )
