"""Tests of the memory estimates on real models, whose live bytes are counted."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl.trainer import utils as trl_utils

from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, Checkpointing, Weights
from stages.hardware import machine, memory
from stages.hardware.model_shape import ModelShape
from stages.models import lm_head
from stages.models.packing import pack_segments
from stages.models.scoring import autocast
from stages.training import adapters
from stages.training.budget import enable_checkpointing
from tests.helpers import TINY, settings, slow_but

KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
}
CPU = torch.device("cpu")


def tiny(kind: str, layers: int, vocabulary: int = 512) -> PreTrainedModel:
    torch.manual_seed(0)
    model, config = KINDS[kind]
    return model(
        config(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            vocab_size=vocabulary,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def block_of(stage: str, *overrides: str) -> Any:
    return vars(settings(*TINY, *(f"{stage}.{override}" for override in overrides)))[stage]


def as_trained(model: PreTrainedModel, block: SFT) -> Any:
    """Return the model in the form in which SFT holds it."""
    if block.start_weights is Weights.bf16:
        model = model.to(torch.bfloat16)
    assert pack_segments(model)
    lm_head.install_cpu_head()
    trl_utils.add_fused_lm_head(model)
    if block.adapter is not Adapter.none:
        model = adapters.attach_new_adapter(model, block.lora, 0)
        adapters.cast_trained_to_fp32(model)
    return model.train()


def batch_of(tokens: int) -> dict[str, torch.Tensor]:
    """Return four examples that fill a packed row; half of each is scored."""
    place = torch.arange(tokens)
    positions = (place % (tokens // 4))[None]
    labels = torch.where(positions < tokens // 8, -100, place % 500)
    return {"input_ids": place[None] % 500, "position_ids": positions, "labels": labels}


class Live(TorchDispatchMode):
    """Counts the bytes of live tensors, as torch's allocator on a GPU does."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.counted_storages: set[int] = set()
        self.now = self.peak = 0
        for parameter in model.parameters():
            self.see(parameter)

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        if key not in self.counted_storages:
            self.counted_storages.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.counted_storages.remove(key)
        self.now -= size

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.see(value)
        return result


def step(
    model: Any, block: SFT, tokens: int, checkpointing: Checkpointing, micro_batches: int
) -> Live:
    """Run two optimizer steps; the second has Adam's moments from the first."""
    if checkpointing is not Checkpointing.none:
        enable_checkpointing(model, checkpointing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    batch = batch_of(tokens)
    with Live(model) as live:
        for _ in range(2):
            for _ in range(micro_batches):
                with autocast(block.precision, CPU):
                    loss = model(**batch, fused_lm_head=True).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live


@pytest.mark.parametrize(
    ("adapter", "checkpointing", "micro_batches"),
    [
        ("none", "none", 2),
        ("lora", "none", 1),
        ("lora", "full", 1),
        ("none", "selective", 1),
    ],
)
@pytest.mark.parametrize("precision", slow_but(["fp32", "bf16"], "fp32"))
def test_live_bytes_of_a_training_step(
    precision: str,
    adapter: str,
    checkpointing: str,
    micro_batches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # gaps in the heap are not counted here
    monkeypatch.setattr(memory, "freed_bytes", lambda *_: 0.0)
    # a buffer wider than the vocabulary is
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 2048)
    block = block_of("sft", f"precision={precision}", f"adapter={adapter}")
    kind = Checkpointing(checkpointing)
    model = as_trained(tiny("llama", 3, vocabulary=2048), block)
    shape = ModelShape.from_config(model.config.to_dict())
    live = step(model, block, 256, kind, micro_batches)
    expected = memory.training_bytes(shape, block, "cpu", 256, kind, micro_batches > 1)
    assert live.peak == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_counts_the_parameters(kind: str) -> None:
    model = tiny(kind, 2)
    shape = ModelShape.from_config(model.config.to_dict())
    counted = sum(p.numel() for p in model.parameters())
    assert shape.parameters == pytest.approx(counted, rel=0.02)
    lora = block_of("sft").lora
    adapted = adapters.attach_new_adapter(model, lora, 0)
    trained = [p.numel() for p in adapted.parameters() if p.requires_grad]
    assert shape.count_adapter(lora) == sum(trained)


def test_a_control_group_limits_what_is_free(tmp_path: Path) -> None:
    for folder, limit in (
        (tmp_path, "max"),
        (tmp_path / "job", "1000"),
        (tmp_path / "job" / "step", "5000"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 600\ninactive_file 100\n")
    assert sorted(machine.free_group_memory(tmp_path, "job/step")) == [400, 4400]
    assert 0 < machine.free_memory() < 2**50


def test_a_token_budget_checkpoints_only_where_the_longest_row_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = block_of("dpo", "max_length=1024", "precision=bf16")
    shape = ModelShape(576, 1536, 30, 49152, 576, 192, tied=True)  # SmolLM2-135M
    needs = {
        c: memory.training_bytes(shape, block, "cpu", 2048, c) / memory.CPU_BUDGET_SHARE
        for c in block.usable_checkpointings
    }

    def budget(free: float) -> tuple[int, Checkpointing]:
        monkeypatch.setattr(machine, "free_memory", lambda: int(free))
        return memory.token_budget(shape, block, "cpu")

    none, selective, full = block.usable_checkpointings
    assert needs[full] < needs[selective] < needs[none]
    assert budget(100 * needs[none]) == (1024, none), "more at once is no faster"
    assert budget(needs[none] - 1) == (1024, selective)
    assert budget(needs[selective] - 1) == (1024, full)
    tokens, checkpointing = budget(needs[full] / 2)
    assert checkpointing is full and tokens < 1024, "a longer row is a micro-batch of its own"
