"""The job file names a stage that other processes run, with its configuration and folders. This file has what those
processes and their parent share: the names of their files, the run of the stage, and the failures."""

import importlib
import time
import traceback
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stages.config.blocks.draws import Drawing
from stages.config.blocks.labels import label_classes
from stages.config.errors import (
    LimitReached,
    UserError,
    storage_message,
)
from stages.store import stage_sources
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.workspace import StageDir

JOB, RESULT, FAILURES = "job.json", "result.json", "failures"
POLL_SECONDS = 0.5  # between two looks at other processes
KILLED = 137  # an agent's exit code after SIGKILL, as in a shell


def write_job(scratch: Path, job: dict[str, Any]) -> None:
    """Write the job file, after removing results, failures and claims of an earlier job."""
    for left in (
        scratch / RESULT,
        *scratch.glob(f"{FAILURES}/*.json"),
        *scratch.glob("shards/*.lock"),
    ):
        left.unlink(missing_ok=True)
    write_note(scratch / JOB, job)


def run_stage(job: dict[str, Any], out: StageDir) -> dict[str, Any]:
    """Run the stage that a job names, and return its metrics. Raise UserError if its source here is not that of the
    command that started the job."""
    for stage, digest in job["sources"].items():
        stage_sources.require_source(stage, digest)
    stage = importlib.import_module(job["stage"])
    kind = getattr(importlib.import_module(job["block"][0]), job["block"][1])
    cfg = read_block(kind, job["config"])
    return stage.run(cfg, {role: Path(folder) for role, folder in job["inputs"].items()}, out)  # type: ignore[no-any-return]


def read_block(kind: type, config: dict[str, Any]) -> Any:
    """Return a block of the configuration from its JSON. The label in it has the class of its labeler."""
    block = OmegaConf.structured(kind)
    if issubclass(kind, Drawing):
        block.label = label_classes()[config["label"]["labeler"]]
    return OmegaConf.to_object(OmegaConf.merge(block, config))


def write_failure(scratch: Path, rank: int | str, error: BaseException) -> None:
    """Write the error of a process, or of a node's agent, to the scratch folder, where the parent reads it."""
    mendable = storage_message(error)
    if isinstance(error, UserError | LimitReached):
        mendable = str(error)
    failure = {
        "rank": rank,
        "time": time.time(),
        "mendable": mendable is not None,
        "message": mendable,
        "setting": error.setting if isinstance(error, LimitReached) else None,
        "traceback": "".join(traceback.format_exception(error)),
    }
    (scratch / FAILURES).mkdir(exist_ok=True)
    write_note(scratch / FAILURES / f"{rank}.json", failure)


def failure_of(scratch: Path, code: int) -> Exception:
    """Return the first error of the processes, with those that the user can correct first."""
    shape = require_keys("rank", "time", "mendable", "message", "setting", "traceback")
    failures = [
        failure for p in scratch.glob(f"{FAILURES}/*.json") if (failure := read_note(p, shape))
    ]
    failures.sort(key=lambda failure: (not failure["mendable"], failure["time"]))
    if failures and failures[0]["setting"]:
        return LimitReached(failures[0]["message"], failures[0]["setting"])
    if failures and failures[0]["mendable"]:
        return UserError(failures[0]["message"])
    if code == KILLED or not failures:
        return UserError(
            "a process was killed, perhaps as memory or disk was full. The same command resumes."
        )
    return RuntimeError(f"process {failures[0]['rank']} failed:\n{failures[0]['traceback']}")
