"""The host waits for the device no more often than recorded."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers import slow_but
from tests.pretend.waits import FLOWS, breaches


@pytest.mark.extended
@pytest.mark.parametrize("flow", slow_but(FLOWS, "dpo"))
def test_the_host_waits_no_more_often_than_recorded(
    flow: str, pretend: ModuleType, built: Path, tmp_path: Path
) -> None:
    assert not (lines := breaches(FLOWS[flow](built, tmp_path))), "\n".join(lines)
