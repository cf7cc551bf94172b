"""Tests of checkpoints: the times of saving, and that all processes save."""

import multiprocessing
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers import TrainerControl, TrainerState

from stages.store.allowance import Allowance
from stages.training.saving import Checkpoints


def due(saving: Checkpoints, folder: Path) -> bool:
    """Return True if a checkpoint is saved after the current step."""
    world = PartialState(cpu=True).num_processes
    args = SimpleNamespace(
        device=torch.device("cpu"),
        output_dir=str(folder),
        world_size=world,
        fsdp=None,
        deepspeed=None,
    )
    control = TrainerControl()
    saving.on_step_end(args, TrainerState(max_steps=100), control)
    return control.should_save


@pytest.mark.parametrize(
    ("fsdp", "deepspeed", "alone"), [(None, None, True), ("on", None, False), (None, "a", False)]
)
def test_the_last_checkpoint_of_sharded_weights_has_what_a_resume_reads(
    fsdp: str | None, deepspeed: str | None, alone: bool, tmp_path: Path
) -> None:
    """DeepSpeed and FSDP load the weights from beside the optimizer state."""
    args = SimpleNamespace(device=torch.device("cpu"), world_size=1, fsdp=fsdp, deepspeed=deepspeed)
    for step in (1, 2):
        Checkpoints(300, Allowance(), "sft").on_step_end(
            args, TrainerState(global_step=step, max_steps=2), TrainerControl()
        )
        assert args.save_only_model is (alone and step == 2)


def test_a_checkpoint_is_due_after_minutes_or_twenty_times_what_saving_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    (tmp_path / "checkpoint-0").mkdir()
    saving, rest = (
        Checkpoints(300, Allowance(), "sft"),
        (SimpleNamespace(output_dir=str(tmp_path)), TrainerState(), TrainerControl()),
    )

    def due_at(seconds: float) -> bool:
        clock[0] = seconds
        return due(saving, tmp_path)

    saving.on_train_begin(*rest)
    assert [due_at(seconds) for seconds in (299, 301)] == [False, True]
    clock[0] = 315
    saving.on_evaluate(*rest)  # these 14 s are not part of saving
    clock[0] = 335
    saving.on_save(*rest)
    assert [due_at(335 + seconds) for seconds in (301, 399, 401)] == [False, False, True]
    saving.on_save(*rest)  # saving took no time
    assert [due_at(736 + seconds) for seconds in (299, 301)] == [False, True]


def decide(rank: int, port: int, intervals: list[float], answers: Any) -> None:
    """Return this process's decision; the clocks of the two processes differ."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    PartialState._reset_state()
    assert PartialState(cpu=True, backend="gloo").num_processes == 2
    # only the time of that process is up
    limit = 1e-9 if intervals[rank] == 0.0 else None
    saving = Checkpoints(intervals[rank], Allowance(minutes=limit), "sft")
    answers.put((rank, (due(saving, Path()), saving.stops)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_decides_for_all(first: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers, intervals = context.Queue(), [0.0, 1e9] if first else [1e9, 0.0]
    workers = [
        context.Process(target=decide, args=(rank, port, intervals, answers)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    decisions = dict(answers.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert decisions == {0: (first, first), 1: (first, first)}
