"""The fixture `pretend`. A test that asks for it runs in a process of its own, where the accelerator is available.

A device that is registered stays so, autograd starts its threads at the first backward, and a fork afterwards cannot
train. So the device is registered in a server that has loaded everything, and every test is a fork of it.
"""

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.pretend import build

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="package")
def server() -> Iterator[None]:
    """Compile the device at most once per machine, and let the server load it. Skip the tests without a compiler.
    Python has one such server at a time, and other tests use their own."""
    if reason := build.why_not():
        pytest.skip(reason)
    build.build()
    CONTEXT.set_forkserver_preload(["tests.pretend.preload"])
    yield
    forkserver._forkserver._stop()  # wait for it, so that its processor time counts here


@pytest.fixture
def pretend(server: None) -> None:
    """The module tests.pretend.device, in a process in which its device is what torch finds."""


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a test with the fixture `pretend` in a fork of the server."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if "pretend" not in arguments:
        return None
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=call,
        args=(
            sender,
            pyfuncitem.module.__name__,
            pyfuncitem.originalname,
            arguments,
            dict(os.environ),
        ),
    )
    process.start()
    sender.close()
    failure = receiver.recv() if receiver.poll(600) else "no answer"
    process.join()
    if failure:
        pytest.fail(failure, pytrace=False)
    return True


def call(
    sender: Connection,
    module: str,
    name: str,
    arguments: dict[str, Any],
    environment: dict[str, str],
) -> None:
    """Call a test function in this process, and send its traceback, or an empty string."""
    from tests.pretend import device

    os.environ.update(environment)
    try:
        with device.available():
            getattr(importlib.import_module(module), name)(**arguments | {"pretend": device})
        sender.send("")
    except BaseException:
        sender.send(traceback.format_exc())
