"""A training stage in several processes. The parent, which is this process, plans, locks and publishes without torch.

Its child is an agent (`agent.py`), which starts a worker (`worker.py`) per process and stops them all when one dies. A
worker is given the stage's resolved configuration in a file; it never composes, plans or locks. The agent inherits the
lock of the node: where the parent is killed, the node stays locked until all have ended, and the next command takes
what they made. Several nodes run the same command on a shared store; all but the first wait for its work and join in.
"""

import ipaddress
import json
import logging
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.config.blocks.training import Training
from stages.config.errors import UserError, full_disk_message
from stages.config.schema import Launch
from stages.hardware import allocator
from stages.store.manifest import read_manifest
from stages.store.node import Node, in_build_order
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.store import Store
from stages.store.workspace import CURVES, SCRATCH, StageDir, read_point

log = logging.getLogger(__name__)

JOB, RESULT, FAILURES = "job.json", "result.json", "failures"
FINISHED = require_keys("metrics", "warnings")  # what a result has
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 300  # between two nodes of the graph, and for node 0 to begin
KILLED = 137  # an agent's exit code, as a shell gives it for SIGKILL


def world_size(node: Node) -> int:
    """How many processes work on a node: only training stages have more than one."""
    return node.config.runtime.world_size if isinstance(node.config, Training) else 1


def execute(
    launch: Launch,
    node: Node,
    stage: ModuleType | None,
    inputs: dict[str, Path],
    work: StageDir,
    listen: Callable[..., None],
) -> dict[str, Any]:
    """The metrics of a stage: of the module `stage` here, or of workers where it is None. `listen` hears of steps.

    Raises:
        UserError: what a worker raised for the user to mend.
        RuntimeError: with the traceback, for whatever else ended a worker.
    """
    if stage is not None:
        with allocator.keep_freed_memory():
            return stage.run(node.config, inputs, work)  # type: ignore[no-any-return]
    scratch = work / SCRATCH
    job = {
        "stage": f"stages.{node.stage}",
        "name": str(node),
        "config": asdict(node.config),
        "inputs": {role: str(folder.resolve()) for role, folder in inputs.items()},
        "out": str(work.path.resolve()),
        "launch": asdict(launch) | {"processes": node.config.runtime.processes, "nodes": node.config.runtime.nodes},
    }
    job = json.loads(json.dumps(job))  # as it is read again
    result = read_note(scratch / RESULT, FINISHED) if read_note(scratch / JOB, require_keys()) == job else None
    if result:
        log.info("%s: the processes of a parent that was killed have finished it.", node)
    else:
        write_job(scratch, job)
        code = run_agent(scratch / JOB, launch.node_rank, work, listen)
        result = read_note(scratch / RESULT, FINISHED)
        if code != 0 or result is None:
            raise failure_of(scratch, code)
    work.warnings += result["warnings"]
    return result["metrics"]  # type: ignore[no-any-return]


def write_job(scratch: Path, job: dict[str, Any]) -> None:
    """Write down the job, after what an earlier one left is gone: from now on a result is this job's."""
    for left in (scratch / RESULT, *scratch.glob(f"{FAILURES}/*.json")):
        left.unlink(missing_ok=True)
    write_note(scratch / JOB, job)


def run_agent(
    job: Path, node_rank: int, work: StageDir | None = None, listen: Callable[..., None] | None = None
) -> int:
    """Start the agent of this machine, pass on the curves while it runs, and return its exit code."""
    command = [sys.executable, "-m", "stages.launch.agent", str(job), str(node_rank)]
    # close_fds=False: the descriptor of the node's lock is inheritable, and stays locked as long as the agent lives.
    process = subprocess.Popen(command, close_fds=False)
    sent_bytes = (work / CURVES).stat().st_size if work and (work / CURVES).exists() else 0
    try:
        while True:
            code = process.poll()
            if work and listen:
                sent_bytes = pass_on(work / CURVES, sent_bytes, listen)
            if code is not None:
                return code
            time.sleep(POLL_SECONDS)
    except BaseException:
        process.terminate()  # the agent then stops its workers
        process.wait()
        raise


def pass_on(curves: Path, sent_bytes: int, listen: Callable[..., None]) -> int:
    """Tell the tracker what the first worker has written since; returns how many bytes of it are told."""
    if not curves.exists():
        return sent_bytes
    with open(curves, "rb") as file:
        file.seek(sent_bytes)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.splitlines():
        if point := read_point(line):
            listen({k: v for k, v in point.items() if k != "step"}, point["step"])
    return sent_bytes + len(whole)


def write_failure(scratch: Path, rank: int, error: BaseException) -> None:
    """Of a child: leave what went wrong for the parent to tell."""
    mendable = str(error) if isinstance(error, UserError) else full_disk_message(error)
    failure = {
        "rank": rank,
        "time": time.time(),
        "mendable": mendable is not None,
        "message": mendable,
        "traceback": "".join(traceback.format_exception(error)),
    }
    (scratch / FAILURES).mkdir(exist_ok=True)
    write_note(scratch / FAILURES / f"{rank}.json", failure)


def failure_of(scratch: Path, code: int) -> Exception:
    """The first error of a worker, as an error of this process."""
    shape = require_keys("rank", "time", "mendable", "message", "traceback")
    failures = [failure for p in scratch.glob(f"{FAILURES}/*.json") if (failure := read_note(p, shape))]
    failures.sort(key=lambda failure: (not failure["mendable"], failure["time"]))
    if failures and failures[0]["mendable"]:
        return UserError(failures[0]["message"])
    if code == KILLED or not failures:
        return UserError("a process was killed: for want of memory or of disk, maybe. The same command resumes.")
    return RuntimeError(f"process {failures[0]['rank']} failed:\n{failures[0]['traceback']}")


def modified_at(file: Path) -> int | None:
    """When, in nanoseconds; None where there is no such file."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def join_training(launch: Launch, targets: list[Node], store: Store) -> None:
    """On a node other than the first: join in wherever several processes train, until the targets are published.

    Raises:
        UserError: where a process failed, and where nothing has been built for long: node 0 has ended, then.
    """
    lineage = in_build_order(targets)
    # What `rebuild` replaces. A node that several machines train is not published before this one has joined in.
    rebuilt_nodes = [node for node in lineage if node.stage == store.rebuild and world_size(node) > 1]
    replaced = {node: read_manifest(store.folder(node)) for node in rebuilt_nodes}
    store, seen = Store(store.root), time.monotonic()
    for node in lineage:
        job, joined = store.partial(node) / SCRATCH / JOB, None
        while (manifest := store.find(node)) is None or manifest == replaced.get(node):
            if store.is_locked(node.stage, node.fingerprint):
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_SECONDS:
                raise UserError(f"{node}: nobody has been building it for {PATIENCE_SECONDS} s. Has node 0 ended?")
            # An attempt is joined once: what it made may take a while to be published.
            if world_size(node) > 1 and (attempt := modified_at(job)) not in (None, joined):
                joined = attempt
                log.info("%s: joining as node %d of %d", node, launch.node_rank, launch.nodes)
                if code := run_agent(job, launch.node_rank):
                    raise UserError(f"{node}: a process failed (exit code {code}); node 0 says why.")
            time.sleep(POLL_SECONDS)


def listen_at(rendezvous: str) -> socket.socket:
    """Return a socket of this machine's that listens at HOST:PORT.

    Raises:
        UserError: where node 0 cannot listen there, or where no other node could reach it.
    """
    host, _, port = rendezvous.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_loopback and not host.startswith(("127.", "localhost", "::1")):
            raise UserError(
                f"launch.rendezvous={rendezvous}: on this machine {host} is {address[0]}, which no other reaches. "
                "Give the address by which they reach node 0."
            )
        return socket.create_server(address[:2], family=family)
    except (OSError, ValueError) as error:
        raise UserError(
            f"launch.rendezvous={rendezvous}: node 0 cannot listen there ({error}). Give an address of this machine, "
            "and a free port."
        ) from error
