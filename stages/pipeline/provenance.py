"""What a manifest says of where a node came from, besides its configuration: command, code, libraries, machine."""

import platform
import shlex
import subprocess
import time
from dataclasses import asdict
from functools import cache
from typing import Any

from stages.config.blocks.training import SFT
from stages.config.installation import DISTRIBUTION, ROOT, program, version
from stages.config.schema import Target
from stages.hardware import machine
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import having, note, recall
from stages.store.workspace import SCRATCH, StageDir

JOB_NODES = "nodes.json"  # in the folder of a sweep's job: the nodes that it is about
LIBRARIES = "torch transformers trl peft accelerate datasets tokenizers hydra-core omegaconf wandb numpy".split()
NOT_OF_THE_RESULT = ("stage=", "rebuild=", "upstream=", "tracker", "hydra")


def command(stage: str, overrides: list[str]) -> str:
    """The command line that makes a stage under the overrides of this run."""
    kept = [o.removeprefix("++") for o in overrides if not o.lstrip("+~").startswith(NOT_OF_THE_RESULT)]
    return shlex.join([*program(), f"stage={stage}", *kept])


def target_of(node: Node) -> str:
    """The stage to ask for that builds a node: its own; the control's is asked for by what compares it, and labels of
    a comparison come with that."""
    if isinstance(node.config, SFT) and node.config.control:
        return str(Target.eval)
    pool = node.inputs.get("pool")
    return str(pool.stage if pool and pool.stage == Target.versus else node.stage)


def begin(work: StageDir, run_id: str | None) -> list[dict[str, Any]]:
    """Note that an attempt at a node starts now; all attempts so far, this one last. They outlive a kill."""
    file = work / SCRATCH / "attempts.json"
    attempts = recall(file, of_attempts) or []
    if attempts:  # an attempt that was killed lived until it last wrote something
        attempts[-1]["ended"] = max(p.lstat().st_mtime for p in work.path.rglob("*"))
    attempts.append({"started": time.time(), "wandb_run": run_id})
    note(file, attempts)
    machine.reset_peak_memory()
    return attempts


def of_attempts(value: Any) -> list[dict[str, Any]]:
    """The shape of what is noted: one at least."""
    first, *more = value
    return [{**having("wandb_run")(attempt), "started": float(attempt["started"])} for attempt in (first, *more)]


def end(
    attempts: list[dict[str, Any]], node: Node, overrides: list[str], metrics: dict[str, Any], warnings: list[str]
) -> Manifest:
    """What the manifest says of a node whose last attempt ends now."""
    attempts[-1]["ended"] = time.time()
    device = metrics.get("device", "cpu")
    return {
        "command": command(target_of(node), overrides),
        **here(),
        "seed": asdict(node.config).get("seed"),
        "device": device,
        "processor": machine.processor(device != "cpu"),
        "attempts": attempts,
        "started": attempts[0]["started"],
        "ended": attempts[-1]["ended"],
        "wall_seconds": round(sum(max(0.0, a["ended"] - a["started"]) for a in attempts), 3),  # clocks may differ
        # Of the first worker, where there are some.
        "peak_memory": metrics.pop("peak_memory", machine.peak_memory()),
        "peak_gpu_memory": metrics.pop("peak_gpu_memory", machine.peak_gpu_memory()),
        "metrics": metrics,
        "warnings": warnings,
    }


@cache
def here() -> dict[str, Any]:
    """Return the versions of this project, Python and the libraries, the machine, and the commit of the code with
    whether it was changed since: no commit where a repository tracks none of it, as one around an environment."""
    versions = {DISTRIBUTION: version(DISTRIBUTION), "python": platform.python_version()}
    versions |= {name: version(name) for name in LIBRARIES}
    tracked = git("ls-files", "--error-unmatch", __file__) is not None
    return {
        "versions": {name: number for name, number in versions.items() if number},
        "machine": f"{platform.system()} {platform.machine()}",
        "git": {
            "commit": git("rev-parse", "HEAD") if tracked else None,
            "dirty": tracked and bool(git("status", "--porcelain", "--untracked-files=no")),
        },
    }


def installed() -> str:
    """Return what is installed in three lines: this project with its commit, the libraries, the machine."""
    (own, *libraries), origin = (" ".join(each) for each in here()["versions"].items()), here()["git"]
    if origin["commit"]:
        own += f" (commit {origin['commit'][:12]}{', with changes' if origin['dirty'] else ''})"
    return f"{own}\n{', '.join(libraries)}\n{here()['machine']}"


def git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None
