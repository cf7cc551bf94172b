"""The agent of one machine, which starts and stops its workers: `python -m stages.launch.agent JOB NODE_RANK`.

The agent of node 0 runs the TCP store through which all workers find each other. It listens on one address only: on
127.0.0.1 for a single node, else on `launch.rendezvous`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stages.config.errors import UserError
from stages.launch.processes import KILLED, POLL_SECONDS, listen_at, write_failure
from stages.store.workspace import SCRATCH

LOCAL = "127.0.0.1:0"  # any free port
PATIENCE = timedelta(minutes=15)  # of other nodes, until node 0 answers
STOP_SECONDS = 30.0  # seconds for a worker to end before it is killed


def main(job_file: Path, node_rank: int) -> int:
    """Return 0; 1 if a worker failed; KILLED if SIGKILL ended one, which makes the others fail too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    job = json.loads(job_file.read_text(encoding="utf-8"))
    processes, nodes = job["launch"]["processes"], job["launch"]["nodes"]
    try:
        host, port, _store = open_rendezvous(job["launch"]["rendezvous"] if nodes > 1 else LOCAL, node_rank)
    except UserError as error:
        write_failure(Path(job["out"]) / SCRATCH, node_rank * processes, error)
        return 1
    common = common_environment(host, port, nodes * processes, processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if nodes == 1:  # workers also open sockets between each other
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback_interface())
    command = [sys.executable, "-m", "stages.launch.worker", str(job_file)]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(processes):
            place = {"RANK": str(node_rank * processes + i), "LOCAL_RANK": str(i)}
            workers.append(subprocess.Popen(command, env={**os.environ, **common, **place}))
        return wait_for_workers(workers)
    finally:
        stop_workers(workers)


def open_rendezvous(rendezvous: str, node_rank: int) -> tuple[str, int, Any]:
    """Return host and port of the TCP store, and on node 0 the store itself, which runs until it is garbage.

    Raises:
        UserError: if node 0 cannot listen at the address, or other nodes cannot reach it.
    """
    host, _, port = rendezvous.rpartition(":")
    if node_rank > 0:
        return host, int(port), None
    server = listen_at(rendezvous)
    port = server.getsockname()[1]
    fd = server.detach()
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=PATIENCE, master_listen_fd=fd)
    return host, port, store


def common_environment(host: str, port: int, world: int, processes: int) -> dict[str, str]:
    """Return the environment variables that all workers share: the TCP store's address and the number of workers."""
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # so no worker opens a second store on every interface
        "PLUMBLINE_AGENT": str(os.getpid()),
    }


def loopback_interface() -> str:
    """Return the name of this machine's loopback interface, as `lo`."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def wait_for_workers(workers: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all workers have ended well, or one has failed. Return the agent's exit code."""
    while True:
        codes = [worker.poll() for worker in workers]
        if failed := [code for code in codes if code]:
            return KILLED if -signal.SIGKILL in failed else 1
        if None not in codes:
            return 0
        time.sleep(POLL_SECONDS)


def stop_workers(workers: list[subprocess.Popen[bytes]]) -> None:
    """Stop the workers that still run."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
