"""The installation that runs: where it is, its distribution's name, and the command that adds an extra's packages."""

import os
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = "plumbline-alignment"


def checkout_project() -> dict[str, Any]:
    """Return the table `project` of the checkout's pyproject.toml; an empty one if this package is not a checkout."""
    path = ROOT / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    return project if project.get("name") == DISTRIBUTION else {}


def install_command(extra: str) -> str:
    """Return the command that installs an extra: by the checkout's folder, else by the distribution's name."""
    if checkout_project():
        return f"pip install -e '{os.path.relpath(ROOT)}[{extra}]'"
    return f"pip install '{DISTRIBUTION}[{extra}]'"  # pip finds it installed, and asks no index for it
