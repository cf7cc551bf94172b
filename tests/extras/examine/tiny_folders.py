"""Folders of tiny models: a start with a chat template, copies whose weights are changed, and adapters on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from stages.base import build_random_model
from stages.config.blocks.models import RandomInit
from stages.models.chat_templates import TEMPLATES

SHAPE = RandomInit(hidden_size=32, layers=2, heads=2, vocab_size=300, seed=0)
Tensors = dict[str, Tensor]


def write_start(folder: Path) -> Path:
    """Write a tiny model of chats, with biases in its attention."""
    model, tokenizer = build_random_model(SHAPE)
    model.config.attention_bias = True
    model = type(model)(model.config)
    tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text()
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|pad|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_a_little(tensors: Tensors) -> None:
    for weight in tensors.values():
        weight += 1e-3 * torch.randn_like(weight)


def trained(start: Path, folder: Path, *changes: Callable[[Tensors], None]) -> Path:
    """Return a copy of the start with changed weights, by default such that are trained a little."""
    shutil.copytree(start, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for change in changes or [train_a_little]:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_keys(file: Path, **keys: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | keys))


def adapter(start: Path, folder: Path, scale_of_b: float = 0.02, **settings: Any) -> Path:
    """Write an adapter on the start, as if it had been trained."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(start)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **plain | settings))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) * scale_of_b
    adapted.save_pretrained(folder)
    return folder
