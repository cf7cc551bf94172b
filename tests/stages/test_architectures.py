"""Whole tiny chains on architectures with their own chat templates: SFT, DPO and GRPO."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    NemotronHConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from stages.store.records import Pair, PairLogProbs, load
from stages.store.workspace import read_curves
from tests.helpers import build
from tests.models.test_model_templates import SHIPPED, tokenizer_of
from tests.stages.test_true_bases import only

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {**EXPERTS, "n_routed_experts": 4}
CONVOLVED = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
RECURRENT = {
    "layers_block_type": ["mamba", "moe", "attention"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "chunk_size": 16,
    "moe_shared_expert_intermediate_size": 32,
}
LAYERS = {"num_hidden_layers": 2}
# name: TRL's file of the family's template, the class of its config, and sizes beside SIZE
FAMILIES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "llama3": ("llama3_2", LlamaConfig, {**LAYERS, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", Qwen3Config, LAYERS | HEAD),
    "qwen3_5": ("qwen3_5_think", Qwen3_5TextConfig, LAYERS | HEAD | CONVOLVED),
    "gemma3": ("gemma3", Gemma3TextConfig, LAYERS | HEAD | WINDOW),
    "gemma4": (
        "gemma4_v5",
        Gemma4TextConfig,
        {**LAYERS, **HEAD, **WINDOW, "global_head_dim": 16, "hidden_size_per_layer_input": 8},
    ),
    "nemotron_h": ("nemotron_3_nano", NemotronHConfig, HEAD | RECURRENT | ROUTED),
    "glm4": ("glm4moe", Glm4MoeConfig, LAYERS | HEAD | ROUTED | {"first_k_dense_replace": 1}),
    "gptoss": ("gptoss", GptOssConfig, {**LAYERS, **HEAD, **WINDOW, "num_local_experts": 4}),
    "mamba": ("qwen2_5", MambaConfig, {"num_hidden_layers": 1, "state_size": 4}),
}
PADDED = {"qwen3_5", "nemotron_h", "gptoss", "mamba"}  # their attention cannot be packed


def checkpoint(name: str, folder: Path) -> Path:
    """Write an instruct checkpoint of a family: random weights, and its own chat template."""
    template, config, sizes = FAMILIES[name]
    tokenizer = tokenizer_of((SHIPPED / f"{template}.jinja").read_text())
    stop = "<|user|>" if name == "glm4" else tokenizer.eos_token
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    ids |= {"eos_token_id": tokenizer.convert_tokens_to_ids(stop)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=len(tokenizer) + 8, **SIZE | sizes, **ids)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def warnings(node: Path) -> list[str]:
    return json.loads((node / "manifest.json").read_text())["warnings"]


def require_a_first_step_from_the_reference(root: Path) -> list[tuple[Pair, PairLogProbs]]:
    """Return the pairs and the reference's scores, of which the DPO of this root begins at log-ratio 0."""
    first = next(point for point in read_curves(only(root, "dpo")) if "rewards/margins" in point)
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(first["rewards/margins"]) < 1e-5
    pairs = {pair.id: pair for pair in load(only(root, "pairs") / "pairs.parquet", Pair)}
    scored = load(only(root, "reference") / "logprobs.parquet", PairLogProbs)
    return [(pairs[each.id], each) for each in scored]


@pytest.mark.extended
@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_goes_through_every_objective(name: str, tmp_path: Path) -> None:
    root, model = tmp_path / "outputs", f"model.path={checkpoint(name, tmp_path / name)}"
    few = ("data.tasks.preference=32", "data.tasks.test=8", "dpo.batch_size=2")
    # gpt-oss begins with its channel
    build(root, "stage=eval", model, *few, "sample.max_new_tokens=20")
    build(root, "stage=grpo", "align=grpo", model, *few[:2], "grpo.max_new_tokens=20")

    example = json.loads((only(root, "sft") / "token_example.json").read_text())
    ends = [token["end_of_turn"] for token in example if token["trained"]]
    assert ends[-1] and not any(ends[:-1]), "the stop is trained, once"
    for pair, scored in require_a_first_step_from_the_reference(root):
        assert pair.chosen_token_ids == scored.chosen_ids
        assert pair.rejected_token_ids == scored.rejected_ids
    steps = [point for point in read_curves(only(root, "grpo")) if "sampler_gap" in point]
    assert steps and max(step["sampler_gap"] for step in steps) < 1e-5
    padded = [any("padded" in text for text in warnings(only(root, s))) for s in ("dpo", "grpo")]
    assert padded == [name in PADDED] * 2
