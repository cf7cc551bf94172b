"""`python -m stages.launch.agent JOB NODE_RANK`: the workers of one machine, started and stopped together.

It does what `torchrun` does, by the same means, but leaves it to the parent to say what went wrong.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.launch.processes import KILLED

LOCAL = "127.0.0.1:0"  # any free port


def main(job_file: Path, node_rank: int) -> int:
    """Returns 0, 1 where a worker failed, or KILLED where SIGKILL ended one: the others fail too, without it."""
    job = json.loads(job_file.read_text())
    launch = job["launch"]
    several = launch["nodes"] > 1
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch["processes"])))
    config = LaunchConfig(
        min_nodes=launch["nodes"],
        max_nodes=launch["nodes"],
        nproc_per_node=launch["processes"],
        run_id=job["name"].replace(" ", "-"),
        rdzv_backend="static" if several else "c10d",  # static: node 0 has the first worker
        rdzv_endpoint=launch["rendezvous"] if several else LOCAL,
        rdzv_configs={"rank": node_rank, "timeout": 900} if several else {},
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "stages.launch.worker", str(job_file))
    except ChildFailedError as error:
        return KILLED if any(f.exitcode == -signal.SIGKILL for f in error.failures.values()) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
