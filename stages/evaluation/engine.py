"""The engine of benchmarks as a child process. It asks its questions over a pipe, and this process answers them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Benchmark
from stages.config.errors import UserError
from stages.store import plugins
from stages.store.workspace import SCRATCH, StageDir

DRIVER = Path(__file__).with_name("lm_eval_driver.py")
Answer = Callable[[dict[str, Any]], dict[str, Any]]  # from the questions of a kind to their answers, by key


def run_engine(cfg: Benchmark, chat: bool, answer: Answer, out: StageDir) -> list[dict[str, Any]]:
    """Return the samples of each task, and the engine's own figures. The engine's log is scratch/engine.log. `chat`:
    questions are lists of messages as JSON, else texts.
    Raise UserError if the engine stops."""
    tasks_dir = str(plugins.user_path(cfg.tasks_dir).resolve()) if cfg.tasks_dir else None
    job = {"tasks": cfg.tasks, "tasks_dir": tasks_dir, "limit": cfg.limit, "chat": chat}
    python = shutil.which(cfg.runtime.python) if cfg.runtime.python else sys.executable
    log = (out / SCRATCH).resolve() / "engine.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    tasks = list[dict[str, Any]]()
    with (
        open(log, "wb") as stderr,
        subprocess.Popen(
            [str(python), "-IB", str(DRIVER)],  # -B: no __pycache__ in `tasks_dir`, whose files have digests
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=tasks_dir or log.parent,  # data files are named relative to the task files
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            send(process, job)
            for line in process.stdout:
                message = json.loads(line)
                if "questions" in message:
                    send(process, answer(message["questions"]))
                elif "error" in message:
                    raise stopped(cfg, message["error"], log)
                else:
                    tasks.append(message)
        except BaseException:
            process.kill()
            raise
    if process.returncode or not tasks:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise stopped(cfg, lines[-1] if lines else f"it ended with status {process.returncode}", log)
    return tasks


def send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert process.stdin
    with suppress(BrokenPipeError):  # the engine has stopped, and its output says why
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def stopped(cfg: Benchmark, reason: str, log: Path) -> UserError:
    tasks = f"benchmark.tasks=[{','.join(cfg.tasks)}]"
    return UserError(f"{tasks}: lm-eval {cfg.engine} stopped: {reason[:600]}. {log} has its log. Correct the tasks.")
