"""The command of the GPU tables: its arithmetic, its record, and a run on a tiny shape."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from stages.config.choices import GPUS
from tests.bench import arms, gpu_chain, gpu_record, gpu_table, mfu
from tests.bench.gpu_cells import NODE, SIZES
from tests.bench.gpu_record import ALLOWED, NOT_MEASURED, Record
from tests.helpers import ROOT
from tests.pretend import build as pretend_build

LENGTH, ROWS = 24, 3


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

    with mock.patch.object(arms, "measured", in_process):
        gpu_chain.main(cfg)
    return Record.read(Path(cfg.out))


def altered(record: Path, name: str, **factors: float) -> str:
    """Write a copy of a record in which figures of a cell are multiplied. Return its path."""
    content: dict[str, Any] = json.loads(record.read_text())
    for cell in content["cells"]:
        if "/".join(cell[key] for key in ("shape", "stage", "variant")) == name:
            cell |= {figure: cell[figure] * factor for figure, factor in factors.items()}
    copy = record.with_name("altered.json")
    copy.write_text(json.dumps(content))
    return str(copy)


@pytest.mark.extended
def test_a_run_fills_its_cells_and_says_why_others_are_empty(measured: gpu_chain.Settings) -> None:
    record = Record.read(Path(measured.out))
    filled = {cell.name: cell for cell in record.cells if not cell.empty}
    assert {*filled} == {"tiny/dpo/ours", "tiny/sample/hf"}
    for cell in filled.values():
        operations = mfu.operations(
            SIZES["tiny"].widths, cell.tokens, 1 if cell.stage == "sample" else 3
        )
        assert cell.mfu == pytest.approx(operations / cell.seconds / record.peak["rate"])
    table = gpu_table.markdown(record)
    assert all(f"| {cell.stage} | {cell.variant} |" in table for cell in record.cells)
    reasons = {cell.name: cell.empty for cell in record.cells}
    assert (reasons["tiny/sft/ours"], "vllm" in reasons["tiny/sample/vllm"]) == (NOT_MEASURED, True)
    assert all(reason in table for reason in reasons.values())


def test_a_second_run_goes_on_and_is_held_against_another(
    measured: gpu_chain.Settings, tmp_path: Path
) -> None:
    file, name = tmp_path / "record.json", "tiny/dpo/ours"
    shutil.copy(measured.out, file)
    second = replace(measured, out=str(file), rounds=2, cells="dpo/ours")
    before = {cell.name: cell.rounds for cell in Record.read(file).cells if cell.rounds}
    run(replace(second, against=altered(file, name, tokens_per_second=1e-3, gib=1e3)))
    after = {cell.name: cell.rounds for cell in Record.read(file).cells if cell.rounds}
    assert {each: len(rounds) for each, rounds in after.items()} == dict.fromkeys(before, 1) | {
        name: 2
    }
    assert after[name][:1] == before[name]
    with pytest.raises(SystemExit, match=f"{name}: tokens/s 9.* worse"):
        run(replace(second, against=altered(file, name, tokens_per_second=1e3)))


def test_more_than_the_allowed_share_is_worse(measured: gpu_chain.Settings, tmp_path: Path) -> None:
    file, name = tmp_path / "record.json", "tiny/sample/hf"
    shutil.copy(measured.out, file)
    record = Record.read(file)

    def worse(**factors):
        return gpu_record.worse(record, Record.read(Path(altered(file, name, **factors))))

    for figure, direction in (("tokens_per_second", -1), ("gib", 1)):
        better, hardly, clearly = (
            1 + direction * by for by in (-0.5, ALLOWED - 0.001, ALLOWED + 0.001)
        )
        assert worse(**{figure: better}) == worse(**{figure: hardly}) == []
        assert [sentence.split(":")[0] for sentence in worse(**{figure: clearly})] == [name]


def test_a_record_is_not_continued_on_another_machine(measured: gpu_chain.Settings) -> None:
    record = Record.read(Path(measured.out))
    with pytest.raises(ValueError, match="precision"):
        replace(record, precision="bf16").continue_from(record)


def test_without_a_gpu_every_cell_of_a_large_shape_says_so(
    measured: gpu_chain.Settings, tmp_path: Path
) -> None:
    record = run(
        replace(measured, out=str(tmp_path / "record.json"), shapes="0.1B 1.7B 8B", cells="*")
    )
    assert {cell.empty for cell in record.cells} == {"this machine has no GPU"}
    assert len({cell.name for cell in record.cells}) == len(record.cells)
    assert gpu_table.markdown(record).count("empty (goal ") == 9, "three goals of three shapes"


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "pretend"])
def test_the_whole_command_runs_on_a_tiny_shape(device: str, tmp_path: Path) -> None:
    if device == "pretend" and (reason := pretend_build.why_not()):
        pytest.skip(reason)
    from tests.pretend import device as pretend

    file, work = tmp_path / "record.json", tmp_path / "work"
    line = ["shapes=tiny", "rounds=1", "precision=fp32", f"out={file}", f"work={work}"]
    environment = pretend.environment() if device == "pretend" else None
    subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu_chain", *line],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    record = Record.read(file)
    assert record.machine["device"] == device
    empty = {cell.name: cell.empty for cell in record.cells if cell.empty}
    assert {name.rpartition("/")[2] for name in empty} <= {
        "ours_liger",
        "trl_liger",
        "trl_padding_free",
        "vllm",
    }
    assert NOT_MEASURED not in empty.values()
    losses = [
        cell.rounds[0]["loss"]
        for cell in record.cells
        if cell.stage == "dpo" and cell.rounds and cell.variant != NODE
    ]
    assert len(losses) >= 4
    assert max(losses) - min(losses) < 1e-5, "our trainer and TRL's make the same steps"
