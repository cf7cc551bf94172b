"""Try the oldest and the newest version of TRL and of transformers that pyproject.toml allows and the index has.

`python -m tests.upstream.versions` installs each beside the environment, in a folder of its own, and compares the tiny
chains with their record: weights, log-probs and curves. It exits with 1 if any differs or cannot be compared. The record
must be of this machine's processor: figures of two processors differ in their last digits.
"""

import logging
import os
import re
import subprocess
import sys
import tempfile

from packaging.requirements import Requirement
from packaging.version import Version

from stages.config.installation import ROOT, checkout_project
from tests.goldens import chains
from tests.goldens.__main__ import DIFFERENT, EQUAL, NOTHING_COMPARED

LIBRARIES = ("trl", "transformers")
OUTCOMES = {EQUAL: "equal", DIFFERENT: "OTHER", NOTHING_COMPARED: "NOT COMPARED"}


def allowed(requirement: Requirement) -> list[Version]:
    """Return the versions that the index has and that the requirement allows, the oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", requirement.name]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [listed] = re.findall(r"Available versions: (.*)", told)
    versions = [Version(each) for each in listed.split(", ")]
    return sorted(version for version in versions if version in requirement.specifier)


def compare_chains(library: str, version: Version) -> int:
    """Return the exit code of the comparison of the tiny chains under this version with their record."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{library}=={version}"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*install, place], check=True)
        check = [sys.executable, "-m", "tests.goldens", "check", "chains"]
        environment = os.environ | {"PYTHONPATH": folder}
        return subprocess.run(check, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not chains.PART.is_of_this_processor():
        sys.exit(f"The chains are {chains.NOT_COMPARABLE}")
    requirements = [Requirement(each) for each in checkout_project()["dependencies"]]
    status = 0
    for requirement in requirements:
        if requirement.name not in LIBRARIES:
            continue
        versions = allowed(requirement)
        for version in dict.fromkeys((versions[0], versions[-1])):
            code = compare_chains(requirement.name, version)
            logging.info("%s %s: %s", requirement.name, version, OUTCOMES.get(code, "FAILED"))
            if code != EQUAL:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
