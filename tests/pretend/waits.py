"""Budgets for how often the host waits for the device in training, which leaves a GPU idle.

`tests/pretend/waits.json` records the waits of each unit of work. A count may only fall: `python -m
tests.pretend.waits` lowers the record to today's counts, and refuses to raise it.
"""

import contextlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from tests.helpers import build
from tests.pretend import device
from tests.pretend.flows import run_stage, train_steps

RECORD = Path(__file__).with_suffix(".json")
# as device.cpp reports it: no wait, but a hidden copy to the device at each use
INDEX = "index on the CPU"
STAGES, LIBRARIES = "stages", ("trl", "transformers", "accelerate", "peft")
Waits = Counter[tuple[str, str]]  # by operator and place, as `stages/objectives/dpo.py:99`


@contextlib.contextmanager
def recorded_waits() -> Iterator[Waits]:
    """Count in this block the operators for which a GPU's host waits, and the hidden copies of CPU indices."""
    waits = Waits()
    listener = device.LISTENER(lambda name: waits.update([(name.decode(), place(sys._getframe()))]))
    device.library().pretend_set_listener(listener)
    try:
        yield waits
    finally:
        device.library().pretend_set_listener(None)


def place(frame: FrameType | None) -> str:
    """Return the innermost line of stages/, or of a library that calls torch."""
    while frame:
        parts = Path(frame.f_code.co_filename).parts
        for name in (STAGES, *LIBRARIES):
            if name in parts and (name == STAGES or "site-packages" in parts):
                return f"{'/'.join(parts[parts.index(name) :])}:{frame.f_lineno}"
        frame = frame.f_back
    return "a backward"  # autograd's threads have no Python stack


def note(waits: Waits, counts: list[Waits]) -> None:
    """Add the waits so far to the counts."""
    counts.append(waits.copy())


def training(stage: str, *overrides: str) -> Callable[[Path, Path], dict[str, Waits]]:
    """Return the flow that measures a training stage under these overrides."""
    title = " ".join((stage, *overrides))

    def measure(root: Path, folder: Path) -> dict[str, Waits]:
        """Return the waits of a micro-batch, from steps of 4 and of 2, and what a step has beyond them."""
        step = {}
        for rows in (1, 2):
            options = [
                f"{stage}.batch_size=4",
                f"{stage}.runtime.micro_batch={rows}",
                f"{stage}.evaluations=1",
            ]
            counts = list[Waits]()
            with recorded_waits() as waits:
                count = partial(note, waits, counts)
                train_steps(
                    3,
                    stage,
                    root,
                    folder / f"{title}-{rows}",
                    *options,
                    *overrides,
                    before_step=count,
                )
            step[4 // rows] = counts[2] - counts[1]  # the third, as the first ones also prepare
        two = step[4] - step[2]
        micro_batch = Waits({key: count // 2 for key, count in two.items()})
        return {f"{title} micro-batch": micro_batch, f"{title} step": step[2] - two}

    return measure


def likelihood(root: Path, folder: Path) -> dict[str, Waits]:
    """Return the waits of the likelihood of 8 more rows."""
    counts = []
    for rows in (8, 16):
        with recorded_waits() as waits:
            run_stage("eval", root, folder / f"eval-{rows}", f"eval.likelihood_prompts={rows}")
        counts.append(waits)
    return {"likelihood of 8 rows": counts[1] - counts[0]}


FLOWS = {
    "sft": training("sft"),
    "dpo": training("dpo"),
    "dpo with the sft loss": training("dpo", "dpo.loss_type=[sigmoid,sft]"),
    "reward": training("reward"),
    "likelihood": likelihood,
}


def by_owner(waits: Waits) -> dict[str, int]:
    """Return how many waits stages/ causes, and how many the libraries do."""
    count_of_stages = sum(count for (_, where), count in waits.items() if where.startswith(STAGES))
    return {"stages": count_of_stages, "libraries": waits.total() - count_of_stages}


def read_record() -> dict[str, dict[str, int]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def breaches(measured: dict[str, Waits]) -> list[str]:
    """List the units with more waits than recorded, and the places of these waits."""
    record, lines = read_record(), []
    for unit, waits in measured.items():
        for owner, count in by_owner(waits).items():
            if count > record.get(unit, {}).get(owner, 0):
                lines += [
                    f"{unit}: {count} waits, recorded {record.get(unit, {}).get(owner, 0)} ({owner})"
                ]
                lines += [f"  {n} × {name} at {where}" for (name, where), n in waits.most_common()]
    return lines


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device.library()  # before the first backward
    with TemporaryDirectory() as temporary, device.available():
        root = Path(temporary) / "outputs"
        with device.available(False):
            build(root, "stage=report")
        measured = {
            name: waits
            for flow in FLOWS.values()
            for name, waits in flow(root, Path(temporary)).items()
        }
    for unit, waits in measured.items():
        logging.info("%s %s", unit, by_owner(waits))
        for (name, where), count in waits.most_common():
            logging.info("  %d × %s at %s", count, name, where)
    if (lines := breaches(measured)) and RECORD.exists():
        sys.exit("\n".join(lines))
    RECORD.write_text(
        json.dumps({unit: by_owner(waits) for unit, waits in measured.items()}, indent=2) + "\n"
    )
