"""What a process of ours is told at its start, before any library is loaded: by run.py, by every job of a sweep, and
by every worker of a training stage. Nothing of ours changes the process by being imported. `warn_of_versions` compares
installed libraries with the versions that this package was made for."""

import io
import json
import logging
import os
import re
import sys
import uuid
import warnings
from functools import cache
from importlib import metadata

from stages.config.errors import visible
from stages.config.installation import DISTRIBUTION, PROGRAM, checkout_project

ALWAYS = {
    "HYDRA_FULL_ERROR": "1",  # errors reach `cli.explain` instead of being printed by Hydra
    # Never TF32, which NVIDIA's containers switch on by this variable: it is not fp32, and under bf16 autocast a GPU
    # has no product of fp32 left that would gain by it.
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
    "MPLBACKEND": "svg",  # a notebook's shell has one that draws into the notebook
}
DEFAULTS = {
    # Threads that spin starve whatever runs beside them; threads that sleep at once wake up 80 µs late for each of the
    # thousands of small operations of a step. So they spin for about as long, and then sleep.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "3000",
    "TOKENIZERS_PARALLELISM": "false",  # forks after it would warn
    # The libraries' own progress bars and advice would drown what the stages say.
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' too
    "TRANSFORMERS_VERBOSITY": "error",
}
LOG_LEVELS = {
    "bitsandbytes": logging.ERROR,  # warns, wherever it is installed, of kernels on the hub
    # They log headers of servers, also with hydra.verbose=true: a server may send a key back in one.
    **dict.fromkeys(("httpcore", "httpcore2", "httpx", "httpx2", "openai"), logging.WARNING),
    "gguf": logging.WARNING,
    "matplotlib": logging.WARNING,
}
log = logging.getLogger(__name__)

# A library that every installation needs; the libraries of extras have a marker behind a semicolon.
REQUIREMENT = re.compile(r"([\w.-]+)([^;]*)")
REQUIRES = re.compile(r"^Requires-Dist: (.*)$", re.MULTILINE)
VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


class VisibleRecord(logging.LogRecord):
    """What is logged, as a terminal may show it: much of it comes from files of others."""

    def getMessage(self) -> str:
        return visible(super().getMessage(), keep="\n\t")


def prepare(typed_arguments: list[str] | None = None) -> None:
    """Set the environment, which child processes inherit, and quieten loggers and warnings in this process. `typed`:
    the arguments of the command that starts here."""
    os.environ |= ALWAYS
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    if typed_arguments is not None:  # for the jobs of a sweep too, which start later, with other arguments
        os.environ["PLUMBLINE_TYPED"] = json.dumps(typed_arguments)
        os.environ[PROGRAM] = "plumbline" if os.path.basename(sys.argv[0]) == "plumbline" else "python run.py"
        os.environ["PLUMBLINE_COMMAND"] = uuid.uuid4().hex  # `rebuild=` rebuilds once per command, not per job
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback per line
    logging.setLogRecordFactory(VisibleRecord)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the locale has no sign for; stderr does so by itself
        sys.stdout.reconfigure(errors="backslashreplace")
    if "WANDB_MODE" in os.environ:  # transformers tells stdout of it as it is imported, whatever the tracker
        os.environ["PLUMBLINE_WANDB_MODE"] = os.environ.pop("WANDB_MODE")
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    # peft looks for the model below an adapter by its name, which says a place in the store.
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")


def read_typed_arguments() -> list[str]:
    """The command line's arguments, also in a process that a sweep has started."""
    return list(json.loads(os.environ.get("PLUMBLINE_TYPED", "[]")))


@cache
def warn_of_versions() -> None:
    """Say once in a process which libraries lie outside the ranges of pyproject.toml, in one line."""
    if libraries := untested_libraries():
        log.warning(
            "warning: Plumbline was not tried with %s. What to do: docs/reference/upgrading.md", ", ".join(libraries)
        )


def untested_libraries() -> list[str]:
    """`trl 1.17.0 (known: >=1.16,<1.17)` for every library outside its range; what is not installed says so itself.

    The ranges are those of the checkout's pyproject.toml, or of the installed distribution's metadata. This reads
    metadata line by line: importlib parses every library's whole description, which takes four times as long.
    """
    from packaging.specifiers import SpecifierSet  # most of what all this takes, and nothing for `--help` or a plan

    libraries = []
    requirements = checkout_project().get("dependencies") or REQUIRES.findall(read_metadata(DISTRIBUTION))
    for name, bounds in (match.groups() for match in map(REQUIREMENT.fullmatch, requirements) if match):
        installed = VERSION.search(read_metadata(name))
        if installed and not SpecifierSet(bounds).contains(installed[1], prereleases=True):
            libraries.append(
                f"{name} {installed[1]} (known: {','.join(sorted(bounds.strip().split(','), reverse=True))})"
            )
    return libraries


def read_metadata(distribution: str) -> str:
    """A distribution's metadata, '' where it is not installed."""
    try:
        installed = metadata.distribution(distribution)
        return installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""  # an egg-info has the latter
    except metadata.PackageNotFoundError:
        return ""
