"""Concurrent calls to endpoints for stages, which contain no coroutines."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from stages.config.errors import UserError
from stages.endpoints.client import Client
from stages.store.workspace import StageDir

T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, T]]


def run_jobs(clients: Sequence[Client], jobs: Iterable[Job[T]], out: StageDir) -> Generator[T, None, None]:
    """Yield the results of jobs that call these clients, in the order of completion. Twice as many jobs run as calls
    are allowed, so that jobs waiting for the disk block no calls. The clients' figures are stored in `out.asked`.

    Raises:
        UserError: the first UserError of a job, after the running calls have ended, because they may be paid for."""
    at_once = 2 * sum(client.endpoint.runtime.concurrency for client in clients)
    waiting, running, errors = iter(jobs), set[asyncio.Task[T]](), list[UserError]()
    with ExitStack() as opened, asyncio.Runner() as runner:
        for client in sorted(clients, key=lambda c: c.calls.path):  # one order for all processes: no deadlock
            opened.enter_context(client.opened())
        try:
            while True:
                while not errors and len(running) < at_once and (job := next(waiting, None)):
                    running.add(runner.get_loop().create_task(job()))
                if not running:
                    break
                done, running = runner.run(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    if isinstance(error := task.exception(), UserError):
                        errors.append(error)
                    elif not errors:
                        yield task.result()
            if errors:
                raise errors[0]
        finally:
            for client in clients:
                runner.run(client.close())
                out.endpoint_calls[client.name] = client.figures()
