"""Tests of samples during training: they change nothing, come from the published model, and survive a resume."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from stages import dpo, sft
from stages.config.choices import Adapter, Checkpointing, Precision
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.packing import attention_name, pack_pairs
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Request
from stages.store.workspace import SAMPLES, StageDir, read_samples
from stages.training.samples import inference_copy
from tests.helpers import Chain, nodes, settings

STAGES = {"sft": sft, "dpo": dpo}


@pytest.fixture
def inputs(built: Path) -> dict[str, dict[str, Path]]:
    chain = Chain(built)
    settings = {
        "sft": {"base": "base", "data": "data"},
        "dpo": {"policy": "sft", "pairs": "pairs", "reference": "reference"},
    }
    return {
        stage: {role: chain.folder(node) for role, node in roles.items()}
        for stage, roles in settings.items()
    }


def trained(name: str, folder: Path, inputs: dict[str, Path], samples: int, **changes: Any) -> Path:
    """Return a stage's folder after one epoch with this many prompts sampled per evaluation."""
    folder.mkdir(parents=True)
    cfg = replace(vars(settings("recipe=tiny"))[name], precision=Precision.fp32, epochs=1.0)
    runtime = changes.pop("runtime", {})
    cfg = replace(
        cfg, **changes, runtime=replace(cfg.runtime, samples=samples, sample_tokens=6, **runtime)
    )
    STAGES[name].run(cfg, inputs, StageDir(folder, lambda metrics, step: None))
    return folder


def figures(folder: Path) -> list[dict[str, Any]]:
    """Return the points of the curves without times."""
    points = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in p.items() if "runtime" not in k and "per_second" not in k} for p in points
    ]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param(
            "sft",
            {"packing": True, "max_length": 128, "batch_size": 4, "precision": Precision.bf16},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "dpo",
            {"runtime": {"gradient_checkpointing": Checkpointing.selective}},
            marks=pytest.mark.slow,
        ),
        ("dpo", {"adapter": Adapter.lora, "precision": Precision.bf16}),
    ],
)
def test_a_model_is_the_same_to_the_bit_whether_it_was_sampled_or_not(
    name: str, changes: dict[str, Any], inputs: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    with_samples, left = (
        trained(name, tmp_path / str(n) / "node", inputs[name], n, **changes) for n in (5, 0)
    )
    products = [
        sorted(p.relative_to(f) for p in (f / "model").rglob("*")) for f in (with_samples, left)
    ]
    assert products[0] == products[1]
    for file in products[0]:
        assert (with_samples / file).read_bytes() == (left / file).read_bytes(), file
    assert figures(with_samples) == figures(left)
    assert not (left / SAMPLES).exists()
    steps = {point["step"] for point in figures(with_samples) if "eval_loss" in point}
    assert {sample.step for sample in read_samples(with_samples)} == steps
    assert len(steps) == 3, "before the first step, and twice after"


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_first_answers_are_the_starts_and_the_last_the_published_models(
    name: str, built: Path
) -> None:
    """Before the first step, DPO's policy is its reference."""
    chain = Chain(built)
    node = nodes(built)[name]
    folder, limit = chain.folder(name), node.config.runtime.sample_tokens
    contract, samples = load_contract(folder / "model"), read_samples(folder)
    start = chain.folder("base" if name == "sft" else "sft") / "model"
    metrics = chain.manifest(name)["metrics"]
    # SFT publishes its best step
    published = metrics["step"] if name == "sft" else metrics["steps"]
    for step, model in ((0, start), (published, folder / "model")):
        samples_at_step = [sample for sample in samples if sample.step == step]
        assert samples_at_step
        sampler = HFSampler.of(load_model(model), contract.stop_ids, limit, 1.0, 4)
        requests = [
            Request(s.id, s.prompt, contract.prompt(s.prompt), [0.0], 0) for s in samples_at_step
        ]
        completions = {
            request.id: completion for request, [completion] in sampler.complete(requests)
        }
        assert {s.id: (s.answer, s.finish_reason) for s in samples_at_step} == {
            name: (contract.text(completion.token_ids or []), completion.finish_reason)
            for name, completion in completions.items()
        }
    assert len({sample.id for sample in samples}) == (5 if name == "sft" else metrics["held_out"])


def state(model: LlamaForCausalLM) -> dict[str, Any]:
    """Return all parts of a model that a sampler might change."""
    return {
        "attention": attention_name(model),
        "forwards": [vars(module).get("forward") for module in model.modules()],
        "modes": [module.training for module in model.modules()],
        "modules": [*map(id, model.modules())],
        "weights": [(id(p), p.requires_grad, p.grad, p.data_ptr()) for p in model.parameters()],
        "generation": model.generation_config,
        "random": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("adapter", [False, True])
def test_nothing_of_a_model_in_training_is_touched(precision: Precision, adapter: bool) -> None:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        attention_dropout=0.5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    pack_pairs(model)
    model.enable_input_require_grads()
    outer = get_peft_model(model, LoraConfig(target_modules="all-linear")) if adapter else model
    outer.train()
    model.generation_config = GenerationConfig(temperature=0.3)
    before = state(outer)
    copy = inference_copy(outer, precision)
    assert not any(module.training for module in copy.modules())
    assert {p.dtype for p in copy.parameters()} == {
        torch.bfloat16 if precision is Precision.bf16 else torch.float32
    }
    assert len({id(p) for p in copy.parameters()}) == len([*outer.parameters()]), (
        "tied weights stay tied"
    )
    request = Request("a", [], [1, 2, 3], [0.0], 0)
    [(_, [first])] = HFSampler.of(copy, [0], 8, 1.0, 1).complete([request])
    assert state(outer) == before
    with torch.no_grad():  # the copy shares weights, so changes of the model show in it
        for parameter in outer.parameters():
            parameter.add_(torch.randn_like(parameter))
    [(_, [later])] = HFSampler.of(inference_copy(outer, precision), [0], 8, 1.0, 1).complete(
        [request]
    )
    assert later.token_ids != first.token_ids
