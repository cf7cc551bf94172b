"""Tests under an ASCII locale, the default of machines without one: equal results, and no lost line."""

import os
from pathlib import Path

import pytest

from tests.helpers import TINY, Chain, command

# Python takes UTF-8 in place of such a locale, unless it is told not to.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_the_chain_is_the_same_under_a_locale_without_utf_8(chain: Chain, tmp_path: Path) -> None:
    root = tmp_path / "ascii"
    ran = command(*TINY, f"outputs={root}", "stage=reference", env={**os.environ, **ASCII})
    assert ran.returncode == 0, ran.stderr
    for name in ("sft", "reference"):
        assert Chain(root).manifest(name)["digest"] == chain.manifest(name)["digest"]
    (log,) = root.glob("runs/**/run.log")
    mean = Chain(root).manifest("reference")["metrics"]["summary"]
    assert "\N{MINUS SIGN}" in mean, "a sign that the locale has not"
    assert mean in log.read_text(encoding="utf-8")
    assert mean.encode("ascii", "backslashreplace").decode() in ran.stdout
