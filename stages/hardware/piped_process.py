"""A program under another Python, which exchanges JSON lines with this process over pipes. It opens no port."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class PipedProcess:
    """A running program. It leads a process group, so that `close` also ends the processes that it started. A program
    that reads its input ends with this process, because the input ends then."""

    def __init__(
        self,
        program: Path,
        python: str | None,
        log: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        patience: float = threading.TIMEOUT_MAX,
    ):
        """Start a program under `python` (None: this one), with its errors in the file `log`. After `patience` seconds
        without a line it counts as stuck, and is killed."""
        self.log, self.patience, self.is_stuck = log, patience, False
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                # -B: no __pycache__ in folders that have a digest
                [
                    os.path.abspath(shutil.which(python or sys.executable) or sys.executable),
                    "-IB",
                    str(program),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
            )

    def send(self, message: Any) -> None:
        """Send a line. If the program has ended, the next `read` returns the reason."""
        assert self.process.stdin
        with suppress(BrokenPipeError), self.watch():
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> dict[str, Any] | None:
        """Return the next line, or None after the last one. `error` says why a program failed or is stuck."""
        assert self.process.stdout
        with self.watch():
            line = self.process.stdout.readline()
        if self.is_stuck:
            return {"error": f"it sent nothing for {self.patience:g} seconds"}
        if not line:
            return {"error": self.last_words()} if self.process.wait() else None
        with suppress(ValueError):
            if isinstance(message := json.loads(line), dict):
                return message
        return {
            "error": f"it sent a line that is not a JSON object: {line[:80].decode(errors='replace').strip()}"
        }

    def last_words(self) -> str:
        """Return the last line of the log, or else the exit code."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next(
            (line for line in reversed(lines) if line.strip()),
            f"it ended with {self.process.returncode}",
        )

    @contextmanager
    def watch(self) -> Iterator[None]:
        timer = threading.Timer(self.patience, self.end_stuck)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end_stuck(self) -> None:
        self.is_stuck = True
        self.kill()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the program and its processes, and wait for it."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self.process.wait()
