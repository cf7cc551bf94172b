"""`python -m stages.launch.worker JOB`: one process of a training stage.

It runs the same `run(cfg, inputs, out)` as a single process would. All workers train; the first (rank 0) writes.
"""

import ctypes
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from stages.config.errors import UserError, full_disk
from stages.hardware import machine, process
from stages.launch.processes import FAILURES, RESULT
from stages.store import kept
from stages.store.work import SCRATCH, Work

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(job_file: Path) -> None:
    """Run the stage that the job names; leave result or failure in its scratch folder."""
    job, rank = json.loads(job_file.read_text()), int(os.environ["RANK"])
    die_with_agent()
    process.prepare()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    work = Work(Path(job["out"]), lambda metrics, step: None, main=rank == 0)
    stage = importlib.import_module(job["stage"])
    kind = get_type_hints(stage.run)["cfg"]
    cfg: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), job["config"]))
    try:
        metrics = stage.run(cfg, {role: Path(folder) for role, folder in job["inputs"].items()}, work)
    except BaseException as error:
        note(work, rank, error)
        raise SystemExit(1) from error
    if rank == 0:
        metrics |= {"peak_memory": machine.peak_memory(), "peak_gpu_memory": machine.peak_gpu_memory()}
        kept.note(work / SCRATCH / RESULT, {"metrics": metrics, "warnings": work.warnings})


def die_with_agent() -> None:
    """Have the kernel end this process with the one that started it: nobody else would, and the node's lock, which the
    agent holds, says that no one is working (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def note(work: Work, rank: int, error: BaseException) -> None:
    """Leave what went wrong for the parent to tell."""
    folder = work / SCRATCH / FAILURES
    folder.mkdir(exist_ok=True)
    mendable = str(error) if isinstance(error, UserError) else full_disk(error)
    told = {
        "rank": rank,
        "time": time.time(),
        "mendable": mendable is not None,
        "message": mendable,
        "traceback": "".join(traceback.format_exception(error)),
    }
    kept.note(folder / f"{rank}.json", told)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
