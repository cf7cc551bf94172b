"""What a manifest says of where a node came from, besides its configuration: command, code, libraries, machine."""

import json
import platform
import shlex
import subprocess
import time
from functools import cache
from importlib import metadata
from typing import Any

from stages import hardware
from stages.config import ROOT
from stages.store import SCRATCH, Manifest, Work

LIBRARIES = "torch transformers trl peft accelerate datasets tokenizers hydra-core omegaconf wandb numpy".split()
NOT_OF_THE_RESULT = ("stage=", "rebuild=", "upstream=", "tracker", "hydra")


def command(stage: str, overrides: list[str]) -> str:
    """The command line that makes a stage under the overrides of this run."""
    kept = [o for o in overrides if not o.lstrip("+~").startswith(NOT_OF_THE_RESULT)]
    return shlex.join(["python", "run.py", f"stage={stage}", *kept])


def begin(work: Work, run_id: str | None) -> list[dict[str, Any]]:
    """Note that an attempt at a node starts now; the attempts so far, this one last. They outlive a kill."""
    file = work / SCRATCH / "attempts.json"
    attempts = json.loads(file.read_text()) if file.exists() else []
    attempts.append({"started": time.time(), "wandb_run": run_id})
    file.write_text(json.dumps(attempts))
    hardware.reset_peak_memory()
    return attempts  # type: ignore[no-any-return]


def end(
    attempts: list[dict[str, Any]], stage: str, overrides: list[str], metrics: dict[str, Any], warnings: list[str]
) -> Manifest:
    """What the manifest says of the attempt that ends now."""
    started, ended = attempts[-1]["started"], time.time()
    return {
        "command": command(stage, overrides),
        **here(),
        "attempts": attempts,
        "started": started,
        "ended": ended,
        "wall_seconds": round(ended - started, 3),
        "peak_memory": hardware.peak_memory(),
        "metrics": metrics,
        "warnings": warnings,
    }


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
