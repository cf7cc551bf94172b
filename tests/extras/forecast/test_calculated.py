"""Tests of the plan for GPUs that this machine lacks: it needs neither weights, data nor a network."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.cli import compose
from stages.config.blocks.grpo import GRPO
from stages.config.choices import GPUS, Adapter, Precision, Sharding, Weights
from stages.config.installation import ROOT
from stages.config.schema import RECIPES
from stages.extras.forecast import calculated
from stages.extras.forecast.peak import training_parts
from stages.hardware import machine, memory
from stages.hardware.model_shape import ModelShape
from stages.preflight import model_files
from stages.store import source_files
from tests.helpers import TINY, composed, inside, settings, slow_but


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Refuse the network, and plan for this machine again after the test."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a plan for another machine asked the hub")

    monkeypatch.setattr(model_files, "hub_config", refuse)
    monkeypatch.setattr(source_files, "resolve_commit", refuse)
    yield
    machine.plan_for(None)


NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("recipe", slow_but(NAMES, "zephyr_7b"))
def test_every_recipe_is_calculated_for_a_named_gpu(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"recipe={recipe}", "plan.gpu=rtx_4090"]
    if recipe == "from_preferences":
        line.append(f"label.path={ROOT}/stages/tasks/toy_preferences.jsonl")
    cfg, store, nodes = compose.prepare(
        composed("stage=plan", f"outputs={tmp_path}", "tracker=none", *line), {}
    )
    assert cfg.dpo.precision is nodes["dpo"].config.precision is Precision.bf16
    planned = calculated.calculate(cfg, nodes, store)
    planned.show()
    shown = capsys.readouterr().out
    dpo = next(node.memory for node in planned.nodes if node.name == "dpo")
    parts = [dpo[part] for part in memory.Parts._fields]
    assert dpo["peak"] == pytest.approx(sum(parts)) and dpo["main memory"] > memory.LIBRARIES
    assert f"{dpo['peak'] / 2**30:.1f}" in shown
    assert ("dpo does not fit." in shown) == (dpo["peak"] > 24e9)
    compose.prepare(composed("stage=plan", f"outputs={tmp_path}", "tracker=none"), {})
    assert machine.planned_gpu.get() is None, "this machine is planned for again"


def test_json_holds_the_parts_of_every_training(tmp_path: Path) -> None:
    ran = inside(*TINY, f"outputs={tmp_path}", "stage=plan", "plan.gpu=h200", "--json")
    result = json.loads(ran.stdout)["result"]
    assert {node["name"] for node in result["nodes"]} == {"sft", "dpo"}
    assert all({*node["memory"]} == {*calculated.MEMORY} for node in result["nodes"])
    assert all(node["memory"]["peak"] > 0 for node in result["nodes"])


def mistral() -> ModelShape:
    shape = ModelShape.from_config(settings("model=mistral_7b").model.config)
    assert shape is not None
    return shape


def test_the_parts_of_a_training_are_its_peak_and_processes_share_its_state() -> None:
    shape = mistral()
    sft = settings("recipe=zephyr_7b", "sft.precision=bf16").sft
    micro_batch = memory.micro_batch(shape, sft, sft.max_length, "cuda")
    expected = memory.training_bytes(shape, sft, "cuda", *micro_batch)
    assert sum(training_parts(shape, sft, sft.max_length, "cuda")) == pytest.approx(expected)
    dpo = settings("recipe=zephyr_7b").dpo
    whole = memory.held_parts(shape, dpo)
    runtime = replace(dpo.runtime, processes=8, sharding=Sharding.fsdp)
    shares = memory.held_parts(shape, replace(dpo, runtime=runtime))
    assert [8 * share for share in shares] == pytest.approx([*whole])
    # Weights, gradients and Adam's two moments in fp32.
    assert sum(whole) == pytest.approx(16 * shape.parameters)
    for adapter in (Adapter.lora, Adapter.qlora):  # merged in main memory
        assert memory.host_bytes(shape, replace(dpo, adapter=adapter)) > 4 * shape.parameters


def grpo(*line: str) -> GRPO:
    """Return the settings of GRPO of Mistral 7B in bf16, one group at once."""
    line = ("model=mistral_7b", "align=grpo", "grpo.precision=bf16", *line)
    return settings(*line, "grpo.runtime.micro_batch=1").grpo


def grpo_peak(*line: str) -> float:
    return sum(training_parts(mistral(), grpo(*line), 500, "cuda"))


def test_grpo_also_holds_its_reference_and_the_engine() -> None:
    machine.plan_for("h200")
    reference = grpo_peak("grpo.beta=0.1") - grpo_peak("grpo.beta=0")
    assert reference == pytest.approx(memory.weight_bytes(mistral(), Weights.fp32))
    capacity = GPUS["h200"][1] * 1e9
    engine = ("grpo.sampler=vllm", "grpo.adapter=lora")
    fewer, more = (grpo_peak(*engine, f"grpo.runtime.engine_memory={n}") for n in (0.3, 0.5))
    assert more - fewer == pytest.approx(0.2 * capacity)


def test_every_process_of_sharded_grpo_samples_from_a_whole_copy() -> None:
    machine.plan_for("h200")
    shape = mistral()
    line = ("launch=fsdp",)
    copied = 2 * shape.parameters
    assert memory.inference_copy_bytes(shape, grpo(*line, "launch.processes=8")) == copied
    # beside it are 1/8 of weights and Adam's moments, keys and values of 16 rows, and one prefill or step
    state = 12 * shape.parameters / 8
    peak = grpo_peak(*line, "launch.processes=8")
    assert state + copied < peak < state + copied + 6 * 2**30
    assert copied < grpo_peak(*line, "launch.processes=16") < peak
