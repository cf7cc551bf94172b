"""The installation: its folder, program and files of texts, and the command that installs an extra's packages."""

import os
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
DISTRIBUTION = "plumbline-alignment"
ENGINE = "lm-eval"  # the distribution of lm-evaluation-harness
# the environment variable with the command's first words, for child processes
PROGRAM = "PLUMBLINE_PROGRAM"


@cache
def read_beside(module: str) -> Any:
    """Return the content of the YAML file beside a module, whose `__file__` is given."""
    text = Path(module).with_suffix(".yaml").read_text(encoding="utf-8")
    # libyaml is 20 times as fast
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def checkout_project() -> dict[str, Any]:
    """Return the table `project` of the checkout's pyproject.toml; an empty one if this package is not a checkout."""
    path = ROOT / "pyproject.toml"
    project = (
        tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    )
    return project if project.get("name") == DISTRIBUTION else {}


def install_command(extra: str) -> str:
    """Return the command that installs an extra: by the checkout's folder, else by the distribution's name."""
    if checkout_project():
        return f"pip install -e '{os.path.relpath(ROOT)}[{extra}]'"
    # pip finds it installed, and asks no index for it
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None. For this project, the checkout's version counts."""
    if distribution == DISTRIBUTION and (project := checkout_project()):
        return str(project["version"])
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def engine_version(python: str | None) -> str | None:
    """Return the version of lm-evaluation-harness that a Python has (None: this Python), or None without it."""
    if python is None:
        return version(ENGINE)
    return output_of(
        python, "-I", "-c", f"from importlib.metadata import version; print(version('{ENGINE}'))"
    )


@cache
def has_package(python: str | None, package: str) -> bool:
    """Return whether a Python (None: this Python) can import a package."""
    script = f"from importlib.util import find_spec; print(bool(find_spec('{package}')))"
    return output_of(python or sys.executable, "-I", "-c", script) == "True"


def output_of(*command: str, cwd: Path | None = None) -> str | None:
    """Return what a program prints, without white space around it, or None if it fails."""
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def program() -> list[str]:
    """Return the first words of a command line: `plumbline` if the user typed that, else `python run.py`."""
    return os.environ.get(PROGRAM, "python run.py").split()


def arguments_of(command: str) -> list[str]:
    """Return the arguments of a command line that begins with `plumbline` or `python run.py`."""
    words = shlex.split(command)
    return words[2:] if words[:1] == ["python"] else words[1:]
