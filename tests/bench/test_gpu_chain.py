"""The command of the GPU tables: its arithmetic, its record, and a run on a tiny shape."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from stages.config.choices import GPUS
from tests.bench import alternating, gpu_chain, gpu_table, mfu
from tests.bench.gpu_cells import NODE, SIZES
from tests.bench.gpu_record import NOT_MEASURED, Record
from tests.helpers import ROOT

LENGTH = 24
ROWS = 3


def test_operations_of_training_are_those_that_torch_counts() -> None:
    size = SIZES["tiny"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**size.config))
    ids = torch.arange(LENGTH).repeat(ROWS, 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=ids, labels=ids).loss.backward()
    attention = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    of_weights = mfu.operations(size.widths, ROWS * LENGTH, mfu.TRAINING)
    assert counter.get_total_flops() - attention == of_weights
    # Torch counts every query with every key, of which a little more than half are masked.
    share = mfu.attention_share(size.widths, LENGTH)
    assert attention / of_weights == pytest.approx(share * 2 * LENGTH / (LENGTH + 1))


@pytest.mark.parametrize(
    ("driver_name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100_80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090 D", None),
    ],
)
def test_the_peak_rate_is_the_datasheets_of_that_very_card(
    driver_name: str, gpu: str | None
) -> None:
    rates = [mfu.datasheet_peak(driver_name, precision) for precision in ("bf16", "fp32")]
    assert rates == ([1e12 * rate for rate in GPUS[gpu][3:]] if gpu else [None, None])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> gpu_chain.Settings:
    """The settings of a run that filled some cells of the tiny shape. Its measurements stayed in this process."""
    folder = tmp_path_factory.mktemp("gpu_chain")
    paths = {"out": str(folder / "record.json"), "work": str(folder / "work")}
    cfg = gpu_chain.Settings("tiny", "dpo/ours sample/hf", rounds=1, precision="fp32", **paths)
    run(cfg)
    return cfg


def run(cfg: gpu_chain.Settings) -> Record:
    """Run the command without processes for its measurements. Return the record."""

    def in_process(cfg, *rest):
        return json.loads(json.dumps(gpu_chain.measure(cfg, *rest)))

    with mock.patch.object(alternating, "measured", in_process):
        gpu_chain.main(cfg)
    return Record.read(Path(cfg.out))


@pytest.mark.extended
def test_a_run_fills_its_cells_and_says_why_others_are_empty(measured: gpu_chain.Settings) -> None:
    record = Record.read(Path(measured.out))
    cells = {cell.name: cell for cell in record.cells}
    assert {name for name, cell in cells.items() if not cell.empty} == {
        "tiny/dpo/ours",
        "tiny/sample/hf",
    }
    cell = cells["tiny/dpo/ours"]
    operations = mfu.operations(SIZES["tiny"].widths, cell.tokens, mfu.TRAINING)
    assert cell.mfu == pytest.approx(operations / cell.seconds / record.peak["rate"])
    assert cells["tiny/sft/ours"].empty == NOT_MEASURED
    assert "vllm" in cells["tiny/sample/vllm"].empty
    table = gpu_table.markdown(record)
    assert all(f"| {cell.stage} | {cell.variant} |" in table for cell in record.cells)


def test_a_second_run_goes_on(measured: gpu_chain.Settings, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    shutil.copy(measured.out, file)
    before = {cell.name: cell.rounds for cell in Record.read(file).cells}
    run(replace(measured, out=str(file), rounds=2, cells="dpo/ours"))
    after = {cell.name: cell.rounds for cell in Record.read(file).cells}
    assert {name for name in after if after[name] != before[name]} == {"tiny/dpo/ours"}
    assert after["tiny/dpo/ours"][:1] == before["tiny/dpo/ours"]
    assert len(after["tiny/dpo/ours"]) == 2


@pytest.mark.slow
def test_the_whole_command_runs_on_a_tiny_shape(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    line = ["shapes=tiny", "rounds=1", "precision=fp32", f"out={file}", f"work={tmp_path / 'work'}"]
    subprocess.run([sys.executable, "-m", "tests.bench.gpu_chain", *line], cwd=ROOT, check=True)
    losses = list[float]()
    missing = set[str]()
    for cell in Record.read(file).cells:
        assert cell.empty != NOT_MEASURED
        if cell.empty:
            missing.add(cell.variant)
        elif cell.stage == "dpo" and cell.variant != NODE:
            losses.append(cell.rounds[0]["loss"])
    assert missing <= {"ours_liger", "trl_liger", "trl_padding_free", "vllm"}
    assert len(losses) >= 4
    assert max(losses) - min(losses) < 1e-5, "our trainer and TRL's make the same steps"
