"""Tests of the preparation of a process at its start."""

import os
import subprocess
import sys
from unittest import mock

from stages.config.installation import ROOT
from stages.hardware import process
from stages.tracking import wandb
from tests.helpers import SECRET


def test_a_mode_in_the_environment_is_heard_by_wandb_alone() -> None:
    """transformers would print a message about it at import, with any tracker."""
    with mock.patch.dict(os.environ, {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET}):
        process.prepare()
        assert wandb.choose_mode() == "offline"
        code = "from transformers.integrations import integration_utils"
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == ""
