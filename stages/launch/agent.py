"""The agent of one machine, which starts and stops its workers: `python -m stages.launch.agent JOB NODE_RANK`.

The agent of node 0 runs the TCP store through which all workers find each other. It listens on one address only: on
127.0.0.1 for a single node, else on `launch.rendezvous`.

Workers that wait for each other forever look like slow ones. So the agent now and then asks every worker by SIGUSR1
where its main thread is. If none moves for a tenth of the time after which PyTorch ends a wait, the agent prints where
each one stands; and once more, as the error, if the wait ends in a failure."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.launch.job_file import KILLED, POLL_SECONDS, write_failure
from stages.launch.processes import WAIT_SECONDS, listen_at
from stages.store.workspace import CURVES, SCRATCH, read_last_step

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1:0"  # any free port
PATIENCE = timedelta(minutes=15)  # of other nodes, until node 0 answers
RESTARTS = 3  # of a worker that divides a stage's items and is killed
STOP_SECONDS = 30.0  # seconds for a worker to end before it is killed
# a stall is a tenth of PyTorch's limit of a wait, seen in so many looks at the workers
STALL_SHARE, LOOKS = 0.1, 6
# as faulthandler writes it
FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


def main(job_file: Path, node_rank: int) -> int:
    """Return 0; 1 if a worker failed; KILLED if SIGKILL ended one, which makes the others fail too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(1))
    job = json.loads(job_file.read_text(encoding="utf-8"))
    processes, nodes, out = job["launch"]["processes"], job["launch"]["nodes"], Path(job["out"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ["PLUMBLINE_AGENT"] = str(os.getpid())
    ranks = range(node_rank * processes, (node_rank + 1) * processes)
    if job["divides"]:
        return run_workers(
            job_file, ranks, {"PLUMBLINE_SHARERS": str(processes)}, restarts=RESTARTS
        )
    try:
        host, port, _store = open_rendezvous(
            job["launch"]["rendezvous"] if nodes > 1 else LOCAL, node_rank
        )
    except UserError as error:
        write_failure(out / SCRATCH, f"of node {node_rank}", error)
        return 1
    common = common_environment(host, port, nodes * processes, processes)
    if nodes == 1:  # workers also open sockets between each other
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # workers inherit this, until they can answer it
    with tempfile.TemporaryDirectory() as stacks:
        timeout = job["config"]["trainer"]["ddp_timeout"] or WAIT_SECONDS
        watch = Watch(Path(stacks), out, timeout)
        code = run_workers(job_file, ranks, common | {"PLUMBLINE_STACKS": stacks}, watch)
    if code and watch.stall:
        write_failure(out / SCRATCH, f"of node {node_rank}", UserError(watch.stall))
    return code


def run_workers(
    job_file: Path,
    ranks: range,
    environment: dict[str, str],
    watch: "Watch | None" = None,
    restarts: int = 0,
) -> int:
    """Start the workers of these ranks, wait until all have ended well or one has failed, and return the agent's exit
    code. A worker that a signal ended is started again, up to `restarts` times."""
    command = [sys.executable, "-m", "stages.launch.worker", str(job_file)]
    workers, left = dict[int, subprocess.Popen[bytes]](), dict.fromkeys(ranks, restarts)

    def start(rank: int) -> None:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank - ranks.start)}
        workers[rank] = subprocess.Popen(command, env={**os.environ, **environment, **place})

    try:
        for rank in ranks:
            start(rank)
        while True:
            codes = {rank: worker.poll() for rank, worker in workers.items()}
            for rank, code in codes.items():
                if code and code < 0 and left[rank]:
                    log.warning(
                        "warning: process %d was killed (signal %d) and is started again",
                        rank,
                        -code,
                    )
                    left[rank] -= 1
                    start(rank)
                    codes[rank] = None
            if failed := [code for code in codes.values() if code]:
                return KILLED if -signal.SIGKILL in failed else 1
            if None not in codes.values():
                return 0
            if watch:
                watch.look(workers)
            time.sleep(POLL_SECONDS)
    finally:
        stop_workers([*workers.values()])


def open_rendezvous(rendezvous: str, node_rank: int) -> tuple[str, int, Any]:
    """Return host and port of the TCP store, and on node 0 the store itself, which runs until it is garbage.
    Raise UserError if node 0 cannot listen at the address, or other nodes cannot reach it."""
    host, _, port = rendezvous.rpartition(":")
    if node_rank > 0:
        return host, int(port), None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # takes seconds, also of a stage's division

    server = listen_at(rendezvous)
    port = server.getsockname()[1]
    fd = server.detach()
    store = TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=PATIENCE, master_listen_fd=fd
    )
    return host, port, store


def common_environment(host: str, port: int, world: int, processes: int) -> dict[str, str]:
    """Return the environment variables that all workers share: the TCP store's address and the number of workers."""
    return {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(processes),
        # so no worker opens a second store on every interface
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


class Watch:
    """The places in the code where the workers of this machine stand. `stall` names them from when none of them has
    moved for a tenth of `limit` until each has moved again, and is '' otherwise."""

    def __init__(self, folder: Path, out: Path, limit: float):
        self.folder, self.out, self.patience = folder, out, STALL_SHARE * limit
        self.stall, self.stacks, self.stalled = "", dict[int, str](), set[int]()
        self.last_look = self.moved = time.monotonic()

    def look(self, workers: dict[int, subprocess.Popen[bytes]]) -> None:
        """Read the answers to the last question, and ask again. A worker that is stopped answers nothing."""
        now = time.monotonic()
        if now - self.last_look < self.patience / LOOKS:
            return
        earlier, self.stacks = (
            self.stacks,
            {rank: self.ask(rank, workers[rank]) for rank in workers},
        )
        moving = {rank for rank in workers if self.stacks[rank] != earlier.get(rank, "")}
        self.moved = self.last_look if moving else self.moved
        self.last_look = now
        self.stalled -= moving
        if not self.stalled and now - self.moved >= self.patience:
            self.stall, self.stalled = self.describe(now - self.moved), {*workers}
            log.warning("warning: %s", self.stall)
        self.stall = self.stall if self.stalled else ""

    def ask(self, rank: int, worker: subprocess.Popen[bytes]) -> str:
        """Return the stack that a worker has written since it was last asked, and ask for the next one."""
        if not (file := self.folder / str(rank)).exists():  # it is starting
            return ""
        stack = file.read_text(encoding="utf-8")
        os.truncate(file, 0)
        worker.send_signal(signal.SIGUSR1)
        return stack

    def describe(self, seconds: float) -> str:
        """Return where the ranks stand, beginning with the place of the fewest."""
        ranks = defaultdict[str, list[int]](list)
        for rank, stack in self.stacks.items():
            ranks[place_of(stack)].append(rank)
        places = sorted(ranks.items(), key=lambda item: len(item[1]))
        stand = " ".join(f"Rank {', '.join(map(str, group))}: {place}." for place, group in places)
        since = (
            "the start" if (step := read_last_step(self.out / CURVES)) is None else f"step {step}"
        )
        return f"no process has moved on for {seconds:.0f} s, since {since}. {stand}"


def place_of(stack: str) -> str:
    """Return where a stack stands, as `wait (torch/….py:9) in gather (accelerate/….py:30) in …`: its innermost line in
    every library, up to the first in Plumbline."""
    places = dict[str, str]()
    for file, line, function in FRAME.findall(stack):
        name = file.rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")
        library = name.partition("/")[0] or os.path.dirname(name)
        places.setdefault(library, f"{function} ({name}:{line})")
        if library == "stages":
            break
    return " in ".join(places.values()) or "no answer (the process is stopped, or has ended)"


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
