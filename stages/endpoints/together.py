"""Many questions on their way at once, for stages, which know nothing of coroutines."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from stages.config.errors import UserError
from stages.endpoints.client import Client
from stages.store.workspace import StageDir

T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, T]]


def answers(clients: Sequence[Client], jobs: Iterable[Job[T]], out: StageDir) -> Generator[T, None, None]:
    """The results of jobs that ask these clients, in the order in which they are done. Twice as many are begun as may
    be on their way together: one that waits for the disk holds up no other. Figures are left in `out.asked`.

    Raises:
        UserError: the first that a job raises, after the calls on their way have ended: they may be paid for.
    """
    at_once = 2 * sum(client.endpoint.runtime.concurrency for client in clients)
    waiting, flying, stop = iter(jobs), set[asyncio.Task[T]](), list[UserError]()
    with ExitStack() as opened, asyncio.Runner() as runner:
        for client in sorted(clients, key=lambda c: c.calls.path):  # as every process does: none waits in a circle
            opened.enter_context(client.opened())
        try:
            while True:
                while not stop and len(flying) < at_once and (job := next(waiting, None)):
                    flying.add(runner.get_loop().create_task(job()))
                if not flying:
                    break
                done, flying = runner.run(first_of(flying))
                for task in done:
                    if isinstance(error := task.exception(), UserError):
                        stop.append(error)
                    elif not stop:
                        yield task.result()
            if stop:
                raise stop[0]
        finally:
            for client in clients:
                runner.run(client.close())
                out.asked[client.name] = client.figures()


async def first_of(tasks: set[asyncio.Task[T]]) -> tuple[set[asyncio.Task[T]], set[asyncio.Task[T]]]:
    return await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
