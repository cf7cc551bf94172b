"""The run of a stage, in this process or in several. This process, the parent, plans, locks and publishes.

Its child is an agent (`agent.py`), which starts the workers (`worker.py`) and stops all of them if one fails. A worker
reads the stage's configuration from a job file. The agent inherits the node's lock. If the parent is killed, the node
stays locked until the workers have ended, and the next command uses their result. Several machines run the same
command on a shared store: node 0 plans, and the others join its training."""

import ipaddress
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.blocks.processes import Launch
from stages.config.errors import LimitReached, UserError
from stages.config.stage_table import STAGES
from stages.launch.cluster import Cluster, find_cluster
from stages.launch.job_file import JOB, POLL_SECONDS, RESULT, failure_of, write_job
from stages.store import stage_sources
from stages.store.allowance import Allowance
from stages.store.blocks import Block, locks_hold
from stages.store.manifest import read_manifest
from stages.store.node import Node, in_build_order
from stages.store.sealed_json import read_note, require_keys
from stages.store.store import Store
from stages.store.workspace import CURVES, SCRATCH, StageDir, read_point

log = logging.getLogger(__name__)

FINISHED = require_keys("metrics", "warnings", "spent")  # the check of a result file
PATIENCE_SECONDS = 300  # that other machines wait for node 0 to start a node
# transformers' default of ddp_timeout, after which PyTorch ends a wait for other processes
WAIT_SECONDS = 1800
Listener = Callable[[dict[str, Any], int], None]  # of the metrics of a step


def world_size(node: Node) -> int:
    """Return the number of processes that may work on a node: on a training, or on a stage that divides its items."""
    return getattr(runtime_of(node), "world_size", 1)


def runtime_of(node: Node) -> Any:
    """Return the block `runtime` of a node, or None."""
    return getattr(node.config, "runtime", None)


def let_workers_divide(launch: Launch, node: Node, inputs: dict[str, Path], out: StageDir) -> Any:
    """Return the config of a stage that this process runs. If its runtime asks for several processes, or `launch` for a
    cluster, the stage may divide its items among workers (`out.divide`)."""
    config = node.config
    cluster = find_cluster(launch, runtime_of(node))
    if cluster:
        config = replace(config, runtime=cluster.runtime)
    if cluster or world_size(node) > 1:
        job = describe_job(launch, node, config, inputs, out) | {"divides": True}
        out.divide = partial(divide, launch, cluster, out / SCRATCH, job)
    return config


def train_in_workers(
    launch: Launch, node: Node, inputs: dict[str, Path], out: StageDir, listen: Listener
) -> dict[str, Any]:
    """Train a node in workers, which import the stage themselves, and return its metrics. `listen` is called with the
    metrics of each step.

    Raises:
        UserError: if a worker raised one, or was killed.
        LimitReached: if the time or the money of the command is used up.
        RuntimeError: for any other error of a worker, with its traceback."""
    scratch = out / SCRATCH
    job = describe_job(launch, node, node.config, inputs, out) | {"divides": False}
    earlier = read_note(scratch / JOB, require_keys()) or {}
    earlier["allowance"] = job["allowance"]  # the limits of another command, or its deadline
    is_same = earlier == json.loads(json.dumps(job))
    result = read_note(scratch / RESULT, FINISHED) if is_same else None
    if result:
        log.info("%s: its workers have finished it, although their parent was killed.", node)
    else:
        write_job(scratch, job)
        code = run_agent(scratch / JOB, launch.node_rank, follow(out / CURVES, listen))
        result = read_note(scratch / RESULT, FINISHED)
        if code != 0 or result is None:
            raise failure_of(scratch, code)
    out.warnings += result["warnings"]
    out.allowance.spent_before += result["spent"]
    return result["metrics"]  # type: ignore[no-any-return]


def describe_job(
    launch: Launch, node: Node, config: Any, inputs: dict[str, Path], out: StageDir
) -> dict[str, Any]:
    """Return the job file of a node with this config."""
    job: dict[str, Any] = {
        "stage": STAGES[node.stage].module,
        "name": str(node),
        "sources": {node.stage: stage_sources.of_process().digest(node.stage)},
        "block": [type(config).__module__, type(config).__name__],
        "config": asdict(config),
        "inputs": {role: str(folder.resolve()) for role, folder in inputs.items()},
        "out": str(out.path.resolve()),
        "calls": str(out.call_folder.resolve()),
        "launch": asdict(launch),
        "allowance": out.allowance.for_job(),
    }
    if world_size(node) > 1:
        runtime = runtime_of(node)
        job["launch"] |= {"processes": runtime.processes, "nodes": runtime.nodes}
    return job


def divide(
    launch: Launch,
    cluster: Cluster | None,
    scratch: Path,
    job: dict[str, Any],
    blocks: Sequence[Block[Any]],
    poll: Callable[[], None],
) -> None:
    """Run workers or a cluster's tasks that divide blocks, until all are done. Raise as `train_in_workers` does. Other nodes may join
    while the job file exists. Workers go on if the parent is killed, and the next command reads their shards."""
    write_job(scratch, job)
    try:
        if cluster:
            return cluster.run_tasks(scratch / JOB, blocks, poll)
        if not locks_hold(scratch):
            log.info(
                "%s: locks do not hold there, so each process has the blocks of its rank.", scratch
            )
        if code := run_agent(scratch / JOB, launch.node_rank, poll):
            raise failure_of(scratch, code)
    finally:
        (scratch / JOB).unlink(missing_ok=True)


def run_agent(job: Path, node_rank: int, poll: Callable[[], None] = lambda: None) -> int:
    """Start this machine's agent, call `poll` while it runs, and return its exit code."""
    command = [sys.executable, "-m", "stages.launch.agent", str(job), str(node_rank)]
    # close_fds=False: the agent inherits the descriptor of the node's lock, so the node stays locked while it lives.
    process = subprocess.Popen(command, close_fds=False)
    try:
        while True:
            code = process.poll()
            poll()
            if code is not None:
                return code
            time.sleep(POLL_SECONDS)
    except BaseException:
        process.terminate()  # the agent stops its workers
        process.wait()
        raise


def follow(curves: Path, listen: Listener) -> Callable[[], None]:
    """Return a function that passes the points that have come since its last call to the tracker."""
    sent = curves.stat().st_size if curves.exists() else 0

    def pass_on() -> None:
        nonlocal sent
        if not curves.exists():
            return
        # a training that resumes removes the points after its checkpoint
        sent = min(sent, curves.stat().st_size)
        with open(curves, "rb") as file:
            file.seek(sent)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for point in filter(None, map(read_point, whole.splitlines())):
            listen({k: v for k, v in point.items() if k != "step"}, point["step"])
        sent += len(whole)

    return pass_on


def modified_at(file: Path) -> int | None:
    """Return a file's modification time in nanoseconds, or None if it does not exist."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def join_training(launch: Launch, targets: list[Node], store: Store, allowance: Allowance) -> None:
    """Join every stage of node 0 in several processes, until the targets are published.
    Raise UserError if a process failed, or no node has been built for PATIENCE_SECONDS, and LimitReached if the time is
    up here, or in a process that trains."""
    lineage = in_build_order(targets)
    divided = [node for node in lineage if world_size(node) > 1]
    # `rebuild` replaces these nodes. A node that several machines train is not published before this one has joined.
    replaced = {
        node: read_manifest(store.folder(node)) for node in divided if node.stage == store.rebuild
    }
    store, seen, joined = Store(store.root), time.monotonic(), dict[Node, int | None]()

    def is_left(node: Node) -> bool:
        return (manifest := store.find(node)) is None or manifest == replaced.get(node)

    while any(map(is_left, (*replaced, *targets))):
        if any(store.is_locked(node.stage, node.fingerprint) for node in lineage):
            seen = time.monotonic()
        elif allowance.is_late:
            raise allowance.time_is_up(f"while node 0 was not working on {targets[-1]}")
        elif time.monotonic() - seen > PATIENCE_SECONDS:
            raise UserError(
                f"node 0 has not worked on {targets[-1]} for {PATIENCE_SECONDS} s. Start node 0 again."
            )
        for node in filter(is_left, divided):
            job = store.partial(node) / SCRATCH / JOB
            # Each attempt is joined only once, since its publication may take a while.
            if modified_at(job) not in (None, joined.get(node)):
                log.info("%s: joining as node %d of %d", node, launch.node_rank, launch.nodes)
                if (code := run_agent(job, launch.node_rank)) and job.exists():
                    error = failure_of(job.parent, code)
                    if isinstance(error, LimitReached):
                        raise error
                    raise UserError(
                        f"{node}: a process failed (exit code {code}). Node 0 prints the reason."
                    )
                # node 0 may have written it anew since, over a killed attempt's
                joined[node] = modified_at(job)
        time.sleep(POLL_SECONDS)


def listen_at(rendezvous: str) -> socket.socket:
    """Return a socket of this machine that listens at HOST:PORT.
    Raise UserError if node 0 cannot listen there, or other nodes cannot reach the address."""
    host, _, port = rendezvous.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_loopback and not host.startswith(
            ("127.", "localhost", "::1")
        ):
            problem = f"on this machine {host} is {address[0]}, which other machines cannot reach"
            raise UserError(
                f"launch.rendezvous={rendezvous}: {problem}. Type the address by which they reach node 0."
            )
        return socket.create_server(address[:2], family=family)
    except (OSError, ValueError) as error:
        problem = f"launch.rendezvous={rendezvous}: node 0 cannot listen there ({error})"
        raise UserError(f"{problem}. Type an address of this machine and a free port.") from error
