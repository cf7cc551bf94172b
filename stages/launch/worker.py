"""A worker, one process of a stage: `python -m stages.launch.worker JOB`.

It runs the same `run(cfg, inputs, out)` as a single process. All workers train, but only rank 0 writes files. Workers
that divide the items of a stage write shards, until all items are done."""

import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.hardware import allocator, machine, process
from stages.launch.job_file import RESULT, run_stage, write_failure
from stages.store.allowance import Allowance
from stages.store.blocks import Block, BlocksDone, claim_blocks
from stages.store.sealed_json import sync, write_note
from stages.store.workspace import SCRATCH, SaveBlock, StageDir

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(job_file: Path) -> None:
    """Run the stage that the job file names, and write its result or its failure to the scratch folder."""
    job, rank = json.loads(job_file.read_text(encoding="utf-8")), int(os.environ["RANK"])
    die_with_agent()
    if job["divides"]:
        use_own_gpu(int(os.environ.pop("LOCAL_RANK")))
    else:
        stacks = os.open(
            Path(os.environ["PLUMBLINE_STACKS"]) / str(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        # the agent asks where the main thread is
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=False)
    process.prepare()
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    place = rank, job["launch"]["processes"] * job["launch"]["nodes"]
    folder, calls = Path(job["out"]), Path(job["calls"])
    is_main = rank == 0 and not job["divides"]
    work = None
    allowance = Allowance.of_job(job["allowance"])
    if job["divides"]:
        work = partial(save_claimed, place, allowance)
    out = StageDir(
        folder,
        lambda metrics, step: None,
        is_main,
        call_folder=calls,
        work=work,
        allowance=allowance,
    )
    try:
        with allocator.keep_freed_memory():
            metrics = run_stage(job, out)
        end_communication()
    except BlocksDone:
        return
    except BaseException as error:
        write_failure(out / SCRATCH, rank, error)
        raise SystemExit(1) from error
    if rank == 0:
        metrics |= {
            "peak_memory": machine.peak_memory(),
            "peak_gpu_memory": machine.peak_gpu_memory(),
        }
        # the result file promises complete files, even if the parent is killed
        for product in out.path.rglob("*"):
            if SCRATCH not in product.relative_to(out).parts:
                sync(product)
        spent = allowance.spent_here()
        result = {"metrics": metrics, "warnings": out.warnings, "spent": spent}
        write_note(out / SCRATCH / RESULT, result)


def end_communication() -> None:
    """Destroy PyTorch's process groups, as PyTorch asks of every process that ends well. A thread of gloo that frees a
    tensor while Python ends would abort the process. After a failure this could wait for other processes forever."""
    from torch import distributed  # takes seconds, also of a stage's division

    gc.collect()  # the trainer, a cycle, refers to a group, and gloo's threads end with the last reference
    if distributed.is_initialized():
        distributed.destroy_process_group()


def save_claimed(
    place: tuple[int, int],
    allowance: Allowance,
    blocks: Sequence[Block[Any]],
    folder: Path,
    save: SaveBlock,
) -> None:
    """Write the shards of blocks that this process claims, until none is left or the time is up. `place`: its rank and
    the number of processes."""
    for block in claim_blocks(blocks, folder, place):
        save(block)
        if allowance.is_late:
            return


def use_own_gpu(local_rank: int) -> None:
    """Show this process one GPU only, which `cuda` then names. Libraries must not see a rank: nothing is exchanged."""
    del os.environ["RANK"]
    if gpus := machine.visible_gpus():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(len(gpus))))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local_rank % len(gpus)]


def die_with_agent() -> None:
    """Let the kernel kill this process when its agent ends (Linux). A worker without an agent would train on, although
    the node's lock, which the agent holds, is free."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["PLUMBLINE_AGENT"]):  # the agent ended before the call above
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
