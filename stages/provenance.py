"""What a manifest says of where a node came from, besides its configuration: command, code, libraries, machine."""

import platform
import shlex
import subprocess
from functools import cache
from importlib import metadata
from typing import Any

from stages.config import ROOT

LIBRARIES = "torch transformers trl peft accelerate datasets tokenizers hydra-core omegaconf wandb numpy".split()
NOT_OF_THE_RESULT = ("stage=", "rebuild=", "upstream=", "tracker", "hydra")


def command(stage: str, overrides: list[str]) -> str:
    """The command line that makes a stage under the overrides of this run."""
    kept = [o for o in overrides if not o.lstrip("+~").startswith(NOT_OF_THE_RESULT)]
    return shlex.join(["python", "run.py", f"stage={stage}", *kept])


@cache
def here() -> dict[str, Any]:
    """Python, libraries, machine, and the commit of the code with whether it was changed since."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = git("rev-parse", "HEAD")
    return {
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "git": {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))},
    }


def git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None
