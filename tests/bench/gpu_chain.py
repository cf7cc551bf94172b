"""The tables of GPUs: `python -m tests.bench.gpu_chain [KEY=VALUE …]`.

Seconds, tokens per second, MFU (`mfu.py`) and peak memory of every stage as run.py builds it, and of the work of three
stages alone: SFT and DPO packed and padded, both by TRL's trainers too (`dpo_trainers.py`), sampling and GRPO, by vLLM too. The
models have random weights in the shapes of published ones. Those from 4B on train a LoRA. Ways that are compared
 alternate, each in a process of its own; the first epoch warms up, and the second is timed.

    shapes    names of SIZES in `gpu_cells.py`; only tiny is for a CPU
    cells     patterns of stage/variant: `dpo/*` or `*/stage`
    rounds    of every cell that is not a whole stage
    minutes   after which no measurement starts
    out       the record (`gpu_record.py`), written after each measurement. The same command goes on with it
    work      models, pairs and stores, which further commands use again
"""

import logging
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from stages.hardware import machine
from tests.bench import alternating, gpu_cells, gpu_record, gpu_table, mfu
from tests.bench.gpu_cells import CHAIN, NODE, SIZES, VARIANTS
from tests.bench.gpu_record import Cell, Record
from tests.helpers import ROOT

# measurements besides the stages of VARIANTS
PREPARE = "prepare"
WHOLE_CHAIN = "chain"


@dataclass
class Settings:
    shapes: str = "Llama-3.1-8B-4k 1.7B 0.1B 8B"
    cells: str = "*"
    rounds: int = 3
    minutes: float = 1e6
    precision: str = "bf16"
    out: str = "outputs/bench/gpu.json"
    work: str = "outputs/bench/gpu"


def main(cfg: Settings) -> None:
    file = ROOT / cfg.out
    ends = time.monotonic() + 60 * cfg.minutes
    record = start_record(cfg)
    if file.exists():
        record.continue_from(Record.read(file))
    record.write(file)
    for unit, cells in plan(cfg, record):
        if time.monotonic() > ends:
            break
        measure_cells(cfg, record, unit, cells)
        record.write(file)
    logging.info("%s", gpu_table.markdown(record))


def start_record(cfg: Settings) -> Record:
    """Return the record without a figure. A cell that this machine cannot measure says why."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    name = device.type if device else "cpu"
    processor = machine.processor_name(name == "cuda")
    shapes = {
        each: {"weights": SIZES[each].widths.weights, "adapter": SIZES[each].adapter}
        for each in cfg.shapes.split()
    }
    cells = [
        Cell(shape, stage, variant)
        for shape in shapes
        for stage, variants in (*VARIANTS.items(), *((stage, (NODE,)) for stage in CHAIN))
        for variant in variants
    ]
    for cell in cells:
        cell.empty = gpu_cells.missing(cell.shape, cell.variant, name != "cpu") or cell.empty
    peak = {"rate": mfu.datasheet_peak(processor, cfg.precision), "source": "datasheet"}
    versions = gpu_record.describe_machine(name, processor)
    return Record(versions, cfg.precision, peak, shapes, cells, gpu_record.commit())


def plan(cfg: Settings, record: Record) -> Iterator[tuple[list[str], list[Cell]]]:
    """Yield the measurements that remain, each as the arguments of `measure` and the cells that it fills: shape by
    shape, the ways of a stage in turn, whole stages last."""

    def chosen(cell):
        return any(
            fnmatch(f"{cell.stage}/{cell.variant}", pattern) for pattern in cfg.cells.split()
        )

    for shape in cfg.shapes.split():
        cells = [each for each in record.cells if each.shape == shape and chosen(each)]
        cells = [
            each
            for each in cells
            if not gpu_cells.missing(shape, each.variant, record.machine["device"] != "cpu")
        ]
        for stage in VARIANTS:
            for number in range(cfg.rounds):
                for cell in cells:
                    if cell.stage == stage and cell.variant != NODE and len(cell.rounds) == number:
                        yield [shape, stage, cell.variant], [cell]
        if nodes := [cell for cell in cells if cell.variant == NODE and not cell.rounds]:
            yield [shape, WHOLE_CHAIN, ""], nodes


def measure_cells(cfg: Settings, record: Record, unit: list[str], cells: list[Cell]) -> None:
    """Run a measurement in another process, and enter it. The first one of a shape is preceded by preparations."""
    shape = unit[0]
    measured = dict[str, Any]()
    try:
        if record.peak["rate"] is None or not (ROOT / cfg.work / shape).exists():
            measured = alternating.measured(cfg, shape, PREPARE, "")
            record.peak = record.peak if record.peak["rate"] else measured
        if "empty" not in measured:
            measured = alternating.measured(cfg, *unit)
    except subprocess.CalledProcessError as error:
        measured = {"empty": f"its process ended with {error.returncode}"}
    for cell in cells:
        figures: Any = measured.get(cell.stage, measured)
        if "empty" in figures:
            cell.empty = figures["empty"]
        else:
            size = SIZES[shape]
            cell.add(figures, size.widths, gpu_cells.passes(size, cell.stage), record.peak["rate"])
        logging.info("%s: %s", cell.name, cell.empty or f"{figures['seconds']:.2f} s")


def measure(cfg: Settings, shape: str, stage: str, variant: str) -> dict[str, Any]:
    """Make one measurement in this process. An error is the reason why its cell is empty."""
    from tests.bench import gpu_measure

    try:
        return gpu_measure.MEASURE[stage](
            SIZES[shape], ROOT / cfg.work / shape, cfg.precision, variant
        )
    except Exception as error:
        logging.exception("%s/%s/%s", shape, stage, variant)
        return {"empty": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


if __name__ == "__main__":
    alternating.run(Settings, main, measure)
