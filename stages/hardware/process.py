"""Prepare every process at its start, before libraries are loaded: run.py, each job of a sweep, each training worker.

Importing our modules never changes the process. `warn_of_versions` warns of libraries in untested versions."""

import io
import json
import logging
import os
import sys
import uuid
import warnings
from functools import cache
from importlib import metadata

from stages.config.errors import visible
from stages.config.installation import DISTRIBUTION, PROGRAM, checkout_project, read_beside, version

ENVIRONMENT = read_beside(__file__)
# The names by which torch reads its accelerators' allocator settings; the first is for all.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
log = logging.getLogger(__name__)


class VisibleRecord(logging.LogRecord):
    """A log record as a terminal may show it: much of its text comes from other people's files."""

    def getMessage(self) -> str:
        return visible(super().getMessage(), keep="\n\t")


def prepare(typed_arguments: list[str] | None = None) -> None:
    """Set the environment, silence loggers and warnings. `typed_arguments`: of the command that starts here."""
    os.environ |= ENVIRONMENT["always"]
    for variable, value in ENVIRONMENT["defaults"].items():
        os.environ.setdefault(variable, value)
    # Micro-batches differ in length. Segments that grow leave no gaps between blocks of many sizes.
    if not any(variable in os.environ for variable in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    # the jobs of a sweep start later with other arguments, and read these
    if typed_arguments is not None:
        os.environ["PLUMBLINE_TYPED"] = json.dumps(typed_arguments)
        os.environ[PROGRAM] = (
            "plumbline" if os.path.basename(sys.argv[0]) == "plumbline" else "python run.py"
        )
        # `rebuild=` rebuilds once per command, not per job
        os.environ["PLUMBLINE_COMMAND"] = uuid.uuid4().hex
    logging.raiseExceptions = False  # a log file on a full disk would cause a traceback per line
    logging.setLogRecordFactory(VisibleRecord)
    # the locale may lack characters; stderr escapes them by default
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # transformers prints a message about it at import, with any tracker
    if "WANDB_MODE" in os.environ:
        os.environ["PLUMBLINE_WANDB_MODE"] = os.environ.pop("WANDB_MODE")
    for name, level in ENVIRONMENT["log_levels"].items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    # peft searches for an adapter's base model by its name, which is a place in the store here.
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")


def read_typed_arguments() -> list[str]:
    """Return the command line's arguments, also in a process that a sweep started."""
    return list(json.loads(os.environ.get("PLUMBLINE_TYPED", "[]")))


@cache
def warn_of_versions() -> None:
    """Warn once per process, in one line, about libraries outside the ranges of pyproject.toml."""
    if libraries := untested_libraries():
        log.warning(
            "warning: Plumbline is not tested with %s. See docs/reference/upgrading.md",
            ", ".join(libraries),
        )


def untested_libraries() -> list[str]:
    """Return `trl 1.17.0 (known: >=1.16,<1.17)` for every installed library outside its range.

    The ranges come from the checkout's pyproject.toml, or from the installed distribution's metadata."""
    # this slow import is not needed for `--help` or a plan
    from packaging.requirements import Requirement

    libraries = []
    ranges = checkout_project().get("dependencies") or (
        version(DISTRIBUTION) and metadata.requires(DISTRIBUTION)
    )
    for requirement in map(Requirement, ranges or ()):
        # those of extras have a marker
        installed = None if requirement.marker else version(requirement.name)
        if installed and not requirement.specifier.contains(installed, prereleases=True):
            bounds = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            libraries.append(f"{requirement.name} {installed} (known: {bounds})")
    return libraries
