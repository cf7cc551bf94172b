"""The pretended accelerator calculates as the CPU does, and refuses what a GPU refuses."""

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stages.models.loading import resolve_device

pytestmark = pytest.mark.extended


def tiny_model(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **options))


def trained(
    model: LlamaForCausalLM, ids: torch.Tensor
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of three steps of AdamW, and the gradients of the first."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, gradients = [], dict[str, torch.Tensor]()
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = gradients or {
            name: weight.grad.cpu().clone() for name, weight in model.named_parameters()
        }
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients


@pytest.mark.parametrize("tied", [False, True])
def test_training_steps_equal_the_cpu(pretend: ModuleType, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    ids = torch.randint(0, 100, (3, 17))
    here = copy.deepcopy(model).to("pretend")
    assert (here.lm_head.weight is here.model.embed_tokens.weight) is tied
    losses, gradients = trained(here, ids.to("pretend"))
    expected_losses, expected = trained(model, ids)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_tensors_on_two_devices_are_refused(pretend: ModuleType) -> None:
    model, ids = tiny_model().to("pretend"), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(RuntimeError, match="on the same device"):
        model(input_ids=ids)
    with pytest.raises(RuntimeError, match="pretend:0 and pretend:1"):
        torch.zeros(2, device="pretend:0") + torch.zeros(2, device="pretend:1")
    assert (torch.zeros(2, device="pretend") + torch.tensor(1.0)).tolist() == [1.0, 1.0]


def test_a_process_has_its_device_before_anything_makes_it_the_current_one(
    pretend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_device("auto") == torch.device("pretend", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == torch.device("pretend", 1)
    assert resolve_device("cpu") == torch.device("cpu")
