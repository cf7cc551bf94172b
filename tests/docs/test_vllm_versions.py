"""The table of versions in docs/how-to/vllm.md against the published wheels."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

ROW = re.compile(r"^\| ([\d.]+) \| (\S+) \| (\S+) \| CUDA \|", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "how-to" / "vllm.md").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(("version", "torch", "transformers"), ROWS)
def test_the_table_has_the_needs_of_the_published_wheels(
    version: str, torch: str, transformers: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    line = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "-q",
    ]
    ran = subprocess.run(
        [*line, "--report", report, f"vllm=={version}"], capture_output=True, text=True, check=False
    )
    if ran.returncode and "No matching distribution" in ran.stderr:
        pytest.skip("the package index cannot be reached")
    assert ran.returncode == 0, ran.stderr
    [wheel] = json.loads(report.read_text())["install"]
    needs = dict(
        re.findall(
            r"^(torch|transformers)([<>=~!].*)$",
            "\n".join(wheel["metadata"]["requires_dist"]),
            re.M,
        )
    )
    assert needs == {"torch": torch, "transformers": transformers}
