"""A test of the real pipeline on two machines: two home folders and two stores, with one remote."""

import os
from pathlib import Path

import pytest

from tests.helpers import TINY, command
from tests.store.s3 import S3


@pytest.mark.extended
def test_a_second_machine_builds_nothing(s3: S3, tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        home = tmp_path / name
        home.mkdir()
        line = (*TINY, "stage=data", f"outputs={home / 'outputs'}", f"store.remote={s3.url}")
        ran = command(*line, env={**os.environ, "HOME": str(home)})
        assert ran.returncode == 0, ran.stderr
        outputs.append(ran.stdout + ran.stderr)
        assert "word-of-secret" not in outputs[-1]
    assert ": built " in outputs[0]
    assert ": built " not in outputs[1] and "pulled from s3://" in outputs[1]
    first, second = (
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.glob("data/*/**/*")
            if path.is_file()
        }
        for root in (tmp_path / "a" / "outputs", tmp_path / "b" / "outputs")
    )
    assert first and first == second
