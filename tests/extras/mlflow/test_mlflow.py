"""Tests of `tracker=mlflow`. `tests/tracking/` compares what all trackers have."""

from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.extras.mlflow.tracker import require_place_inside
from stages.preflight import machine_needs
from tests.helpers import TINY, refused


@pytest.mark.parametrize("place", ["s3://other/x", "http://other/x", "/tmp/x", "STORE/../x"])
def test_a_tracked_experiment_keeps_its_artifacts_in_the_store(place: str, tmp_path: Path) -> None:
    place = place.replace("STORE", tmp_path.as_uri())
    require_place_inside((tmp_path / "artifacts").as_uri(), tmp_path, "mine")
    require_place_inside((tmp_path / "artifacts" / "1").as_uri(), tmp_path, "mine")
    with pytest.raises(UserError, match=r"tracker\.project=mine"):
        require_place_inside(place, tmp_path, "mine")


def test_without_its_package_the_error_names_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_needs, "find_spec", lambda package: None)
    line = refused(*TINY, "tracker.mlflow=true")
    assert line.startswith("tracker=mlflow needs ") and "pip install -e '.[mlflow]'" in line
