"""Trainings have no dropout, wherever a model keeps its probability."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.upstream.parts import Parts

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 4096}
OF_MODELS = {
    "starcoder2": WIDTH
    | {"residual_dropout": 0.5, "intermediate_size": 64, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 4096, "resid_pdrop": 0.5},
    "llama": WIDTH | {"attention_dropout": 0.5, "intermediate_size": 64},
}


def build(kind: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **OF_MODELS[kind])
    )
    return model.train()


def is_random(model: PreTrainedModel) -> bool:
    ids = torch.arange(16)[None]
    with torch.no_grad():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("kind", OF_MODELS)
def test_a_trainer_turns_dropout_off(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path)
    model = build(kind)
    monkeypatch.setattr(parts, "model", lambda: model)
    assert is_random(model)
    parts.supervised(4)
    assert not is_random(model)
