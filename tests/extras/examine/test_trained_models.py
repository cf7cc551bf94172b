"""Tests of the models that an examination names."""

from pathlib import Path
from typing import Any

import pytest

from stages.extras.examine.trained_models import trained_elsewhere
from tests.preflight.test_adapter_base import write_adapter


@pytest.mark.parametrize("named", [3, ["base"], "x" * 5000, "a\0b", None])
def test_an_examination_takes_no_odd_name_for_a_folder(named: Any, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", named)
    assert trained_elsewhere(str(folder), "before").path == "before"
