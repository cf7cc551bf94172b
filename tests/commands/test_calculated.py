"""Tests of the plan for GPUs that this machine lacks: it needs neither weights, data nor a network."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    LlamaConfig,
    LlamaForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from stages.cli import compose
from stages.commands.planning import calculated
from stages.commands.planning.peak import training_parts
from stages.config.blocks.models import Model
from stages.config.choices import GPUS, Adapter, Checkpointing, Precision, Sharding, Weights
from stages.config.installation import ROOT
from stages.config.schema import CONF, RECIPES, Config
from stages.hardware import machine, memory
from stages.hardware.model_shape import ModelShape
from stages.preflight import model_files
from stages.store import source_files
from tests.helpers import composed, refused, settings, slow_but

# Parameters in billions, as their publishers count them.
PUBLISHED = {
    "mistral_7b": 7.24,
    "zephyr_7b_sft": 7.24,
    "llama31_8b": 8.03,
    "llama31_70b": 70.6,
    "llama32_1b": 1.24,
    "qwen3_0p6b": 0.596,
    "smollm2_135m": 0.135,
    "embedded": 0.135,
    "smollm2_360m": 0.362,
}


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Refuse the network, and plan for this machine again after the test."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a plan for another machine asked the hub")

    monkeypatch.setattr(model_files, "hub_config", refuse)
    monkeypatch.setattr(source_files, "resolve_commit", refuse)
    yield
    machine.plan_for(None)


def plan(folder: Path, capsys: pytest.CaptureFixture[str], *line: str) -> dict[str, list[str]]:
    """Return the cells of the plan's rows by node, and its sentences under ''."""
    cfg, store, nodes = compose.prepare(
        composed("stage=plan", f"outputs={folder}", "tracker=none", *line)
    )
    calculated.calculate(cfg, nodes, store).show()
    rows = [re.split(r"\s{2,}", row.strip()) for row in capsys.readouterr().out.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1} | {
        "": [row[0] for row in rows if len(row) == 1]
    }


NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize(
    "recipe", slow_but(NAMES, "from_preferences", "llama32_1b_qlora", "zephyr_7b")
)
def test_every_recipe_is_calculated_for_a_named_gpu(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_the_user = (
        [f"label.path={ROOT}/stages/tasks/toy_preferences.jsonl"]
        if recipe == "from_preferences"
        else []
    )
    rows = plan(tmp_path, capsys, f"recipe={recipe}", "plan.gpu=h200", *of_the_user)
    assert {"dpo", "reference", "eval"} <= rows.keys()
    weights, gradients, optimizer, activations, peak, host = map(float, rows["dpo"][:6])
    assert weights + gradients + optimizer + activations == pytest.approx(peak, abs=0.25)
    assert host * 2**30 > memory.LIBRARIES


# Hours of published runs, as in docs/how-to/memory.md. Their DPO computes the reference itself.
@pytest.mark.parametrize(
    ("recipe", "gpus", "stages", "hours"),
    [
        ("zephyr_7b", 8, ["sft"], 1.56),
        ("zephyr_7b", 8, ["reference", "dpo"], 1.48),
        ("tulu3_8b", 32, ["sft"], 6.0),
        ("tulu3_8b", 8, ["reference", "dpo"], 10.0),
    ],
)
def test_published_runs_took_hours_in_the_range_of_the_plan(
    recipe: str,
    gpus: int,
    stages: list[str],
    hours: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [f"recipe={recipe}", "launch=fsdp", f"launch.processes={gpus}", "plan.gpu=h100_80gb"]
    rows = plan(tmp_path, capsys, *line)
    ranges = [[*map(float, rows[stage][-1].split(" to "))] for stage in stages]
    shortest, longest = map(sum, zip(*ranges, strict=True))
    assert shortest < hours < longest < 8 * shortest
    one_row = [f"{stage}.runtime.micro_batch=1" for stage in ("sft", "dpo")]
    more = plan(tmp_path, capsys, *line, *one_row, "launch.processes=64")
    assert {more[stage][-1] for stage in stages} == {"not known"}


def test_a_plan_for_another_machine_takes_its_precision_and_leaves_this_one_as_it_is(
    tmp_path: Path,
) -> None:
    cfg, _, nodes = compose.prepare(
        composed("stage=plan", f"outputs={tmp_path}", "tracker=none", "plan.gpu=h200")
    )
    assert cfg.dpo.precision is nodes["dpo"].config.precision is Precision.bf16
    compose.prepare(composed("stage=plan", f"outputs={tmp_path}", "tracker=none"))
    assert machine.planned_gpu.get() is None
    assert "a100_80gb" in refused("stage=plan", "plan.gpu=a100_8gb")
    assert "'h100_80gb'" in refused("stage=plan", "plan.gpu=h100")
    assert "plan.tokens={sftt: 1e8}" in refused(
        "stage=plan", "plan.gpu=h200", "plan.tokens={sftt: 1e8}"
    )


def test_the_published_shapes_have_the_published_numbers_of_parameters() -> None:
    for name, billions in PUBLISHED.items():
        model = OmegaConf.merge(Model, OmegaConf.load(CONF / "model" / f"{name}.yaml"))
        shape = ModelShape.from_config(model_files.model_config(OmegaConf.to_object(model)) or {})
        assert shape is not None and shape.parameters / 1e9 == pytest.approx(billions, rel=0.01), (
            name
        )


def test_the_shape_of_a_group_does_not_describe_another_path() -> None:
    with pytest.raises(AssertionError, match="asked the hub"):
        model_files.model_config(settings("model=mistral_7b", "model.path=someone/else").model)


def test_shares_of_the_state_add_up_to_the_whole() -> None:
    block = settings("recipe=zephyr_7b").dpo
    shape = ModelShape.from_config(settings("model=mistral_7b").model.config)
    assert shape is not None
    whole = memory.held_parts(shape, block)
    runtime = replace(block.runtime, processes=8, sharding=Sharding.fsdp)
    shares = memory.held_parts(shape, replace(block, runtime=runtime))
    assert [8 * share for share in shares] == pytest.approx([*whole])
    # Weights, gradients and Adam's two moments in fp32.
    assert sum(whole) == pytest.approx(16 * shape.parameters)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_settings_that_a_plan_names_fit_and_half_the_gpus_do_not(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "recipe=tulu3_8b",
        "model=llama31_70b",
        "launch=fsdp",
        "launch.processes=8",
        "plan.gpu=h100_80gb",
    )
    sentences = " ".join(plan(tmp_path, capsys, *line)[""])
    match = re.search(
        rf"{stage} does not fit\. It would with [^.]*\.adapter=lora or with launch=fsdp and (\d+) GPU",
        sentences,
    )
    assert match is not None, sentences
    peaks = [
        float(plan(tmp_path, capsys, *line, f"launch.processes={count}")[stage][4]) * 2**30
        for count in (int(match[1]), int(match[1]) // 2)
    ]
    assert peaks[0] <= GPUS["h100_80gb"][1] * 1e9 < peaks[1]


def test_no_remedy_divides_a_model_among_one_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "recipe=smollm2_360m",
        "model=llama32_1b",
        "plan.gpu=rtx_4090",
        "sft.runtime.micro_batch=8",
    )
    sentences = " ".join(plan(tmp_path, capsys, *line, "sft.max_length=2048")[""])
    assert "sft.runtime.micro_batch=1." in sentences and "and 1 GPU" not in sentences


def test_an_adapter_is_merged_in_main_memory() -> None:
    block = settings("recipe=zephyr_7b").dpo
    shape = ModelShape.from_config(settings("model=mistral_7b").model.config)
    assert shape is not None
    for adapter in (Adapter.lora, Adapter.qlora):
        assert memory.host_bytes(shape, replace(block, adapter=adapter)) > 4 * shape.parameters


def test_arithmetic_is_counted_as_by_torch() -> None:
    tokens = 32
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model, shape = LlamaForCausalLM(config), ModelShape.from_config(config.to_dict())
    assert shape is not None
    with FlopCounterMode(display=False) as forward:
        output = model(torch.arange(tokens)[None]).logits
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    # eager attention computes products that the mask drops
    masked = 2 * shape.layers * shape.query * tokens**2
    block = settings("recipe=tiny", "dpo.precision=fp32").reference
    rate = GPUS["h100_80gb"][4] * 1e12
    expected = calculated.seconds_per_token(shape, block, tokens, "h100_80gb") * rate * tokens
    assert expected == pytest.approx(forward.get_total_flops() - masked, rel=0.01)
    trained = settings("recipe=tiny", "precision=fp32", "sft.precision=fp32").sft
    for checkpointing, passes in ((Checkpointing.none, 3), (Checkpointing.full, 4)):
        runtime = replace(trained.runtime, gradient_checkpointing=checkpointing, micro_batch=1)
        block = replace(trained, runtime=runtime)
        assert calculated.seconds_per_token(
            shape, block, tokens, "h100_80gb"
        ) * rate * tokens == pytest.approx(passes * expected)
    assert backward.get_total_flops() == pytest.approx(2 * forward.get_total_flops(), rel=0.01)


def test_what_processes_divide_takes_a_share_of_the_time_each() -> None:
    shape = ModelShape.from_config(settings("model=mistral_7b").model.config)
    assert shape is not None
    machine.plan_for("h100_80gb")
    for name in ("sample", "answer", "reference"):
        alone, four = (vars(settings("recipe=tiny", f"launch.processes={n}"))[name] for n in (1, 4))
        times = [
            calculated.seconds_per_token(shape, block, 60, "h100_80gb") for block in (alone, four)
        ]
        assert times[0] == pytest.approx(4 * times[1]), name


def test_twice_the_bandwidth_generates_in_half_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    block, shape = (
        settings("recipe=tiny").answer,
        ModelShape.from_config(settings("model=mistral_7b").model.config),
    )
    assert shape is not None
    machine.plan_for("h200")
    monkeypatch.setitem(GPUS, "faster", (*GPUS["h200"][:2], 2 * GPUS["h200"][2], *GPUS["h200"][3:]))
    once, faster = (
        calculated.seconds_per_token(shape, block, 100, name) for name in ("h200", "faster")
    )
    assert once == pytest.approx(2 * faster) and math.isfinite(once)


def test_the_parts_of_training_are_its_peak() -> None:
    block, shape = (
        settings("recipe=zephyr_7b", "sft.precision=bf16").sft,
        ModelShape.from_config(settings("model=mistral_7b").model.config),
    )
    assert shape is not None
    micro_batch = memory.micro_batch(shape, block, block.max_length, "cuda")
    expected = memory.training_bytes(shape, block, "cuda", *micro_batch)
    assert sum(training_parts(shape, block, block.max_length, "cuda")) == pytest.approx(expected)


def grpo(*line: str) -> tuple[ModelShape, Config]:
    """Return the shape of Mistral 7B and the settings of its GRPO."""
    cfg = settings("model=mistral_7b", "align=grpo", "grpo.precision=bf16", *line)
    shape = ModelShape.from_config(cfg.model.config)
    assert shape is not None
    return shape, cfg


def grpo_peak(*line: str) -> float:
    shape, cfg = grpo(*line)
    return sum(training_parts(shape, cfg.grpo, 500, "cuda"))


def test_a_kl_term_needs_a_second_model() -> None:
    machine.plan_for("h200")
    one_group = "grpo.runtime.micro_batch=1"
    without, kl = (grpo_peak(f"grpo.beta={beta}", one_group) for beta in (0, 0.1))
    assert kl - without == pytest.approx(memory.weight_bytes(grpo()[0], Weights.fp32))


def test_vllm_takes_its_share_of_the_gpu_from_grpo() -> None:
    machine.plan_for("h200")
    capacity, line = GPUS["h200"][1] * 1e9, ("grpo.sampler=vllm", "grpo.adapter=lora")
    shares = [
        grpo_peak(*line, "grpo.runtime.micro_batch=1", f"grpo.runtime.engine_memory={share}")
        for share in (0.3, 0.5)
    ]
    assert shares[1] - shares[0] == pytest.approx(0.2 * capacity)
    # A budget for many rows leaves vLLM its share.
    many = (*line, "grpo.batch_size=4096", "grpo.runtime.gradient_checkpointing=none")
    assert 0.8 * capacity < grpo_peak(*many) < capacity
    assert grpo_peak(*many, "grpo.runtime.engine_memory=0.5") < capacity


@pytest.mark.parametrize(("precision", "size"), [("bf16", 2), ("fp32", 4)])
def test_every_process_of_sharded_grpo_samples_from_a_whole_copy(precision: str, size: int) -> None:
    machine.plan_for("h200")
    line = (f"grpo.precision={precision}", "grpo.runtime.micro_batch=1", "launch=fsdp")
    shape, cfg = grpo(*line, "launch.processes=8")
    copied = size * shape.parameters
    assert memory.inference_copy_bytes(shape, cfg.grpo) == copied
    # beside it are 1/8 of weights and Adam's moments, keys and values of 16 rows, and one prefill or step
    state = 12 * shape.parameters / 8
    peak = sum(training_parts(shape, cfg.grpo, 500, "cuda"))
    assert state + copied < peak < state + copied + 6 * 2**30
    more = grpo_peak(*line, "launch.processes=16")
    assert copied < more < peak


def test_one_process_of_grpo_copies_only_weights_of_another_type() -> None:
    for line, size in (
        ((), 2),
        (("grpo.precision=fp32",), 0),
        (("grpo.adapter=lora",), 0),
        (("grpo.adapter=lora", "grpo.sampler=vllm"), 2),
    ):
        shape, cfg = grpo(*line)
        assert memory.inference_copy_bytes(shape, cfg.grpo) == size * shape.parameters, line


def test_experts_under_keys_that_are_not_read_are_no_dense_model() -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    assert ModelShape.from_config(DeepseekV3Config(**sizes, vocab_size=128).to_dict()) is None


def test_a_model_without_gates_has_two_maps_in_an_mlp() -> None:
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = Starcoder2Config(**sizes, num_key_value_heads=2, vocab_size=128)
    shape = ModelShape.from_config(config.to_dict())
    with torch.device("meta"):
        expected = Starcoder2ForCausalLM(config).num_parameters()
    assert shape is not None and shape.parameters == pytest.approx(expected, rel=0.03)


def test_grpo_also_takes_the_time_of_its_samples_and_kto_that_of_mismatched_ones() -> None:
    shape, cfg = grpo()
    machine.plan_for("h100_80gb")
    rows = cfg.grpo.batch_size * cfg.grpo.completions
    drawing = calculated.seconds_per_drawn_token(shape, cfg.grpo, 500, rows, "h100_80gb")
    forward = calculated.seconds_per_token(
        shape, replace(cfg.reference, precision=Precision.bf16), 500, "h100_80gb"
    )
    group, kto, dpo = (
        calculated.seconds_per_token(
            shape, replace(block, precision=Precision.bf16), 500, "h100_80gb"
        )
        for block in (cfg.grpo, replace(cfg.kto, runtime=cfg.dpo.runtime), cfg.dpo)
    )
    assert group > drawing + 2 * forward
    assert kto - dpo == pytest.approx(forward)
