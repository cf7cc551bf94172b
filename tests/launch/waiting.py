"""A stage whose second process does not join a sum of all processes: it sleeps, or is stopped."""

import os
import signal
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from stages.store.workspace import StageDir


@dataclass
class Waiting:
    stopped: bool = False
    seconds: float = 0.0
    trainer: dict[str, Any] = field(default_factory=dict)


def run(cfg: Waiting, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    (out / f"allocator-{os.environ['RANK']}").write_text(os.environ["PYTORCH_ALLOC_CONF"])
    distributed.init_process_group("gloo", timeout=timedelta(seconds=cfg.trainer["ddp_timeout"]))
    for step in range(1, 4):
        if step == 3 and distributed.get_rank() == 1:
            if cfg.stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            fall_asleep(cfg.seconds)
        distributed.all_reduce(torch.ones(1))
        out.log({"loss": 1.0}, step)
    return {}


def fall_asleep(seconds: float) -> None:
    time.sleep(seconds)
