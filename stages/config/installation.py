"""The installation: its folder, program and files of texts, and the command that installs an extra's packages."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextvars import ContextVar
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from stages.config.errors import visible

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
DISTRIBUTION = "plumbline-alignment"
# the environment variable with the command's first words, for child processes
PROGRAM = "PLUMBLINE_PROGRAM"
SETTING = re.compile(r"\+*[\w./]+=.*", re.DOTALL)  # as a manifest records it
LONGEST_COMMAND = 20_000  # characters; a recorded command may be a stranger's
# libyaml is 20 times as fast
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The Pythons that a plan does not run, since nobody typed them
untyped_programs = ContextVar[frozenset[str]]("untyped_programs", default=frozenset())


@cache
def read_beside(module_file: str) -> Any:
    """Return the content of the YAML file beside a module's file, under the same name."""
    return parse_yaml(Path(module_file).with_suffix(".yaml").read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text."""
    return yaml.load(text, YAML_LOADER)


def checkout_project() -> dict[str, Any]:
    """Return the table `project` of the checkout's pyproject.toml; an empty one if this package is not a checkout."""
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return {}
    project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    return project if project.get("name") == DISTRIBUTION else {}


def install_command(extra: str) -> str:
    """Return the command that installs an extra, by the folder of a checkout, else by the distribution's name."""
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
def has_package(python: str | None, package: str) -> bool:
    """Return whether a Python (None: this Python) can import a package."""
    script = f"from importlib.util import find_spec; print(bool(find_spec('{package}')))"
    return output_of(python or sys.executable, "-I", "-c", script) == "True"


def is_left_alone(python: str | None) -> bool:
    """Return whether this plan may not run a Python."""
    return python in untyped_programs.get()


def output_of(*command: str, cwd: Path | None = None) -> str | None:
    """Return what a program prints, without white space around it, or None if it fails."""
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def program() -> list[str]:
    """Return the words before a command's arguments: those in the environment, else `python run.py`."""
    return os.environ.get(PROGRAM, "python run.py").split()


def arguments_of(command_line: str) -> list[str]:
    """Return the arguments of a command line that begins with `plumbline` or `python run.py`."""
    words = shlex.split(command_line)
    starts_with_python = words[:1] == ["python"]  # `python run.py`, else `plumbline`
    return words[2:] if starts_with_python else words[1:]


def recorded_settings(command_line: Any) -> list[str]:
    """Return the settings of a command that a manifest records, each KEY=VALUE. Raise ValueError if the text is
    something else, or has characters that cannot be seen: who wrote the manifest may want it to be typed."""
    if not isinstance(command_line, str) or len(command_line) > LONGEST_COMMAND:
        raise ValueError("this is no command, or too long for one")
    if visible(command_line) != command_line:
        raise ValueError("it has invisible characters")
    words = shlex.split(command_line)
    if words[:1] != ["plumbline"] and words[:2] != ["python", "run.py"]:
        raise ValueError("it is another program's")
    settings = arguments_of(command_line)
    if not all(map(SETTING.fullmatch, settings)):
        raise ValueError("it has other words than settings")
    return settings
