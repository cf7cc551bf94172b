"""The engine of benchmarks as a child process: it asks its questions over a pipe, and this process answers them."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.extras.benchmarks import Benchmark, lm_eval_driver
from stages.hardware.piped_process import PipedProcess
from stages.store import plugins
from stages.store.workspace import SCRATCH, StageDir

DRIVER = Path(lm_eval_driver.__file__)
# Files of nltk's sentence splitter. Empty ones are an untrained splitter, so that IFEval downloads no trained one.
SPLITTER = [
    f"tokenizers/punkt_tab/english/{name}" for name in ("abbrev_types.txt", "sent_starters.txt")
]
SPLITTER += [
    f"tokenizers/punkt_tab/english/{name}" for name in ("collocations.tab", "ortho_context.tab")
]
Answer = Callable[[dict[str, Any]], dict[str, Any]]  # from questions to their answers, by key


def run_engine(cfg: Benchmark, chat: bool, answer: Answer, out: StageDir) -> list[dict[str, Any]]:
    """Return for each task its samples with their scores, and the engine's own figures. The prompt of a question is a
    list of messages as JSON if `chat`, else a text.
    Raise UserError if the engine fails. Its log is scratch/engine.log."""
    tasks_dir = plugins.user_path(cfg.tasks_dir).resolve() if cfg.tasks_dir else None
    log, messages = (out / SCRATCH).resolve() / "engine.log", list[dict[str, Any]]()
    environment = os.environ | {"NLTK_DATA": str(write_splitter(log.parent / "nltk_data"))}
    # The task files name their data relative to themselves.
    with closing(
        PipedProcess(DRIVER, cfg.runtime.python, log, environment, tasks_dir or log.parent)
    ) as child:
        child.send(
            {
                "tasks": cfg.tasks,
                "tasks_dir": tasks_dir and str(tasks_dir),
                "limit": cfg.limit,
                "chat": chat,
            }
        )
        while (message := child.read()) is not None:
            if "error" in message:
                failure = f"benchmark.tasks=[{','.join(cfg.tasks)}]: lm-eval {cfg.engine} failed"
                raise UserError(
                    f"{failure}: {message['error'][:600]}. Correct the tasks. Its log: {log}."
                )
            if "questions" in message:
                child.send(answer(message["questions"]))
            else:
                messages.append(message)
    return messages


def write_splitter(folder: Path) -> Path:
    """Write the empty files of SPLITTER, and return the folder: nltk looks first in the one that NLTK_DATA names."""
    for name in SPLITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder
