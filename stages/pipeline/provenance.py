"""The origin of a node, as its manifest states it: command, commit, versions of libraries, machine and times."""

import platform
import shlex
import time
from dataclasses import asdict
from functools import cache
from typing import Any

from stages.config.blocks.draws import Drawing
from stages.config.blocks.pairs import Pairs
from stages.config.blocks.sampling import DrawnCandidates
from stages.config.blocks.training import SFT
from stages.config.choices import Split
from stages.config.installation import DISTRIBUTION, ROOT, output_of, program, version
from stages.config.stage_table import Target
from stages.hardware import machine
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.workspace import SCRATCH, StageDir

JOB_NODES = "nodes.json"  # in the folder of a sweep's job: the nodes of that job
LIBRARIES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "hydra-core",
    "omegaconf",
    "wandb",
    "numpy",
]
# Beginnings of settings that change no result: the recorded command does not repeat them.
NEUTRAL_SETTINGS = ("stage=", "rebuild=", "upstream=", "tracker", "limits", "hydra")


def command(stage: str, overrides: list[str]) -> str:
    """Return the command line that runs a stage with the settings of this run that may change a result."""
    result_settings = [
        o.removeprefix("++") for o in overrides if not o.lstrip("+~").startswith(NEUTRAL_SETTINGS)
    ]
    return shlex.join([*program(), f"stage={stage}", *result_settings])


def fingerprints_of_job(value: Any) -> set[str]:
    """Return the fingerprints in the parsed JSON of JOB_NODES. Raise an error of WRONG_SHAPE if it is something else."""
    return {*require_keys()(value).values()}


def stage_to_type(node: Node) -> str:
    """Return the stage to type so that a node is built: the stage that runs in the node, with three exceptions.
    `stage=eval` builds the controls, `stage=versus` the labels of compared answers, and `stage=select` the base model's
    answers for SFT with their labels."""
    if node.stage != Target.eval:
        for each in (node, node.inputs.get("pairs", node)):
            if isinstance(each.config, SFT | Drawing | Pairs) and each.config.control:
                return Target.eval
    pool = node.inputs.get("pool", node)
    answers_for_sft = isinstance(pool.config, DrawnCandidates) and pool.config.split is Split.sft
    if answers_for_sft:
        return Target.select
    if pool.stage == Target.versus:
        return Target.versus
    return node.stage


def begin_attempt(out: StageDir, wandb_id: str | None) -> list[dict[str, Any]]:
    """Write to the scratch folder that an attempt at a node starts now, and return all its attempts, in order. A
    killed attempt stays in that file. Its end is the last time when it changed a file."""
    file = out / SCRATCH / "attempts.json"
    attempts = read_note(file, parse_attempts) or []
    if attempts:  # the last one was killed
        attempts[-1]["ended"] = max(p.lstat().st_mtime for p in out.path.rglob("*"))
    attempts.append({"started": time.time(), "wandb_run": wandb_id})
    write_note(file, attempts)
    machine.reset_peak_memory()
    return attempts


def parse_attempts(value: Any) -> list[dict[str, Any]]:
    """Return the attempts in parsed JSON, which must be a list of at least one, each with its run and its start."""
    first, *more = value
    return [
        {**require_keys("wandb_run")(attempt), "started": float(attempt["started"])}
        for attempt in (first, *more)
    ]


def end_attempt(
    attempts: list[dict[str, Any]],
    node: Node,
    overrides: list[str],
    metrics: dict[str, Any],
    warnings: list[str],
) -> Manifest:
    """Return the manifest's fields for a node whose last attempt ends now."""
    attempts[-1]["ended"] = time.time()
    if node.edited:
        warnings = [f"The source of {node.stage} was edited: {node.edited}.", *warnings]
    device = metrics.get("device", "cpu")
    return {
        "command": command(stage_to_type(node), overrides),
        **read_environment(),
        "seed": asdict(node.config).get("seed"),
        "device": device,
        "processor": machine.processor_name(device != "cpu"),
        "attempts": attempts,
        "started": attempts[0]["started"],
        "ended": attempts[-1]["ended"],
        # clocks may differ
        "wall_seconds": round(sum(max(0.0, a["ended"] - a["started"]) for a in attempts), 3),
        # If several workers train, the first one measures its memory.
        "peak_memory": metrics.pop("peak_memory", machine.peak_memory()),
        "peak_gpu_memory": metrics.pop("peak_gpu_memory", machine.peak_gpu_memory()),
        "metrics": metrics,
        "warnings": warnings,
    }


@cache
def read_environment() -> dict[str, Any]:
    """Return the versions of this project, Python and the libraries, the machine, and the commit of the code. `dirty`
    tells if the code differs from the commit. The commit is None if git does not track this file."""
    versions = {DISTRIBUTION: version(DISTRIBUTION), "python": platform.python_version()}
    versions |= {name: version(name) for name in LIBRARIES}
    tracked = output_of("git", "ls-files", "--error-unmatch", __file__, cwd=ROOT) is not None
    return {
        "versions": {name: number for name, number in versions.items() if number},
        "machine": f"{platform.system()} {platform.machine()}",
        "git": {
            "commit": output_of("git", "rev-parse", "HEAD", cwd=ROOT) if tracked else None,
            "dirty": tracked
            and bool(output_of("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT)),
        },
    }


def describe_installation() -> str:
    """Return the installation in three lines: this project with its commit, the libraries, the machine."""
    environment = read_environment()
    project, *libraries = map(" ".join, environment["versions"].items())
    commit = environment["git"]["commit"]
    if commit:
        changes = ", with changes" if environment["git"]["dirty"] else ""
        project += f" (commit {commit[:12]}{changes})"
    return f"{project}\n{', '.join(libraries)}\n{environment['machine']}"
