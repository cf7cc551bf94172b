"""Installed libraries against the versions that this package was made for: a line at the start where they differ."""

import logging
import re
from functools import cache
from importlib import metadata

log = logging.getLogger(__name__)

PACKAGE = "plumbline"
# A need of every installation; those of extras have a marker behind a semicolon.
NEED = re.compile(r"^Requires-Dist: ([\w.-]+)([^;\n]*)$", re.MULTILINE)
VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


@cache
def warn() -> None:
    """Say once in a process which libraries lie outside the ranges of pyproject.toml, in one line."""
    if found := outside():
        log.warning("warning: Plumbline was not tried with %s. What to do: docs/upgrading.md", ", ".join(found))


def outside() -> list[str]:
    """`trl 1.17.0 (known: >=1.16,<1.17)` for every library outside its range; what is not installed says so itself.

    The ranges are those of pyproject.toml, as the installation of this package keeps them. Both sides are read line by
    line: importlib parses every library's whole description, which takes four times as long as all this.
    """
    from packaging.specifiers import SpecifierSet  # most of what all this takes, and nothing for `--help` or a plan

    found = []
    for name, bounds in NEED.findall(described(PACKAGE)):
        installed = VERSION.search(described(name))
        if installed and not SpecifierSet(bounds).contains(installed[1], prereleases=True):
            found.append(f"{name} {installed[1]} (known: {','.join(sorted(bounds.strip().split(','), reverse=True))})")
    return found


def described(distribution: str) -> str:
    """A distribution's metadata, '' where it is not installed."""
    try:
        found = metadata.distribution(distribution)
        return (
            found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
        )  # the latter of an egg-info in a checkout
    except metadata.PackageNotFoundError:
        return ""
