"""Installed libraries against the versions that this package was made for: a line at the start where they differ."""

import logging
import re
from functools import cache
from importlib import metadata

from stages.config.installation import DISTRIBUTION, checkout_project

log = logging.getLogger(__name__)

# A library that every installation needs; the libraries of extras have a marker behind a semicolon.
REQUIREMENT = re.compile(r"([\w.-]+)([^;]*)")
REQUIRES = re.compile(r"^Requires-Dist: (.*)$", re.MULTILINE)
VERSION = re.compile(r"^Version: (\S+)$", re.MULTILINE)


@cache
def warn() -> None:
    """Say once in a process which libraries lie outside the ranges of pyproject.toml, in one line."""
    if found := outside():
        log.warning("warning: Plumbline was not tried with %s. What to do: docs/upgrading.md", ", ".join(found))


def outside() -> list[str]:
    """`trl 1.17.0 (known: >=1.16,<1.17)` for every library outside its range; what is not installed says so itself.

    The ranges are those of the checkout's pyproject.toml, or of the installed distribution's metadata. This reads
    metadata line by line: importlib parses every library's whole description, which takes four times as long.
    """
    from packaging.specifiers import SpecifierSet  # most of what all this takes, and nothing for `--help` or a plan

    found = []
    requirements = checkout_project().get("dependencies") or REQUIRES.findall(described(DISTRIBUTION))
    for name, bounds in (match.groups() for match in map(REQUIREMENT.fullmatch, requirements) if match):
        installed = VERSION.search(described(name))
        if installed and not SpecifierSet(bounds).contains(installed[1], prereleases=True):
            found.append(f"{name} {installed[1]} (known: {','.join(sorted(bounds.strip().split(','), reverse=True))})")
    return found


def described(distribution: str) -> str:
    """A distribution's metadata, '' where it is not installed."""
    try:
        found = metadata.distribution(distribution)
        return found.read_text("METADATA") or found.read_text("PKG-INFO") or ""  # an egg-info has the latter
    except metadata.PackageNotFoundError:
        return ""
