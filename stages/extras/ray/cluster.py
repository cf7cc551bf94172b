"""`launch=ray`: tasks of a Ray cluster compute the blocks of a stage, one each (`pip install -e '.[ray]'`).

All nodes see the store at the same path. Ray gives a block to one process, and to another one if the process or its
node dies, so blocks need no locks. The command that started the tasks reads their shards and publishes."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from stages.config.blocks.processes import Launch
from stages.config.errors import UserError
from stages.extras.ray import RayLaunch
from stages.hardware import allocator, machine, process
from stages.launch.cluster import Cluster, Runtime
from stages.launch.job_file import POLL_SECONDS, failure_of, run_stage, write_failure
from stages.store.allowance import Allowance
from stages.store.blocks import Block, BlocksDone, fatal_blocks_error
from stages.store.workspace import SaveBlock, StageDir

log = logging.getLogger(__name__)

ONE_TASK = "let each node run one task: ray start --num-cpus=1"


class RayCluster(Cluster):
    """The Ray cluster of `launch.address`. Without GPUs its tasks have the device of this process."""

    def __init__(self, launch: RayLaunch, runtime: Runtime):
        self.launch = launch
        num_gpus = launch.num_gpus
        if num_gpus is None:
            num_gpus = int(runtime.device != "cpu" and machine.may_have_gpu())
        self.num_gpus = num_gpus
        self.runtime = runtime if num_gpus else replace(runtime, device="cpu")

    @classmethod
    def of(cls, launch: Launch, runtime: Runtime) -> Self | None:
        """Return the cluster that `launch.address` names, or None."""
        if isinstance(launch, RayLaunch) and launch.address:
            return cls(launch, runtime)
        return None

    def run_tasks(
        self, job_file: Path, blocks: Sequence[Block[Any]], poll: Callable[[], None]
    ) -> None:
        """Run a task for each block, and call `poll` twice a second until all have ended.

        Raises:
            UserError: if there is no cluster, a task raised a UserError, or blocks ended too many processes.
            RuntimeError: for any other error of a task, with its traceback."""
        import ray  # an extra
        from ray.exceptions import (
            NodeDiedError,
            OutOfMemoryError,
            RayError,
            RayTaskError,
            WorkerCrashedError,
        )

        try:
            ray.init(self.launch.address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            problem = f"launch.address={self.launch.address}: this machine is not in a Ray cluster ({one_line(error)})"
            raise UserError(
                f"{problem}. Start it by `ray start --head`, or `ray start --address=HEAD:PORT`."
            ) from error
        try:
            log.info("%d tasks on Ray, with %d GPUs each", len(blocks), self.num_gpus)
            if self.num_gpus and not ray.cluster_resources().get("GPU"):
                log.warning(
                    "warning: the Ray cluster has no GPU. Its tasks wait for one; launch.num_gpus=0 uses CPUs."
                )
            # With a GPU, Ray by default ends a process after each task. `max_calls=0` keeps the process with its model.
            task = ray.remote(
                num_gpus=self.num_gpus, max_retries=self.launch.max_retries, max_calls=0
            )(compute_block)
            running = {
                task.options(name=block.name).remote(job_file, block.name): block
                for block in blocks
            }
            fatal = list[Block[Any]]()
            while running:
                ended_tasks, _ = ray.wait(
                    [*running], num_returns=len(running), timeout=POLL_SECONDS
                )
                for ended in ended_tasks:
                    block = running.pop(ended)
                    try:
                        ray.get(ended)
                    except RayTaskError:
                        raise failure_of(job_file.parent, code=1) from None
                    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError):
                        fatal.append(block)
                poll()
        except RayError as error:
            raise UserError(
                f"Ray failed ({one_line(error)}). The same command resumes after the last blocks."
            ) from error
        finally:
            ray.shutdown()  # ends all tasks and their processes, which frees their GPUs
        if fatal:
            raise fatal_blocks_error(fatal, self.launch.max_retries + 1, ONE_TASK)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def compute_block(job_file: Path, name: str) -> None:
    """Write the shard of a block, in a process of the cluster. The parent reads an error from a file."""
    try:
        with allocator.keep_freed_memory():
            job = json.loads(job_file.read_text(encoding="utf-8"))
            if Allowance.of_job(job["allowance"]).is_late:
                return  # the command that started the tasks stops when all have ended
            blocks, folder, save = open_stage(job_file)
            if (folder / f"{name}.parquet").exists():
                return  # a process wrote it and died before Ray knew
            if name not in blocks:
                problem = "a node has another kind of device than this machine, and so other blocks"
                raise UserError(
                    f"launch=ray: {problem}. Run the command on a node, or set launch.num_gpus=0."
                )
            save(blocks[name])
    except Exception as error:
        write_failure(job_file.parent, name, error)
        raise


@cache
def open_stage(job_file: Path) -> tuple[dict[str, Block[Any]], Path, SaveBlock]:
    """Run a stage up to its blocks. Return them by name, their folder, and the function that writes a block's shard.
    These stay in the process for its next tasks, and so does the model that the function has loaded."""
    import ray

    process.prepare()
    cpus = {node["NodeID"]: node["Resources"].get("CPU", 1) for node in ray.nodes()}
    os.environ["PLUMBLINE_SHARERS"] = str(int(cpus[ray.get_runtime_context().get_node_id()]))
    job = json.loads(job_file.read_text(encoding="utf-8"))
    work = list[tuple[Sequence[Block[Any]], Path, SaveBlock]]()
    out = StageDir(
        Path(job["out"]),
        lambda metrics, step: None,
        is_main=False,
        work=lambda *each: work.append(each),
    )
    with suppress(BlocksDone):
        run_stage(job, out)
    [(blocks, folder, save)] = work
    return {block.name: block for block in blocks}, folder, save
