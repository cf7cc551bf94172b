"""The cells of `gpu_chain`: the shapes of models, the work of each, and the ways to do it."""

import importlib.util
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from tests.bench import mfu
from tests.helpers import ROOT

VARIANTS = {
    "sft": ("ours", "ours_liger", "ours_padded", "trl"),
    "dpo": (
        "ours",
        "ours_liger",
        "ours_padded",
        "trl",
        "trl_tuned",
        "trl_liger",
        "trl_padding_free",
    ),
    "sample": ("hf", "generate", "vllm"),
    "grpo": ("hf", "vllm"),
}
# whole nodes
CHAIN = ("base", "data", "sft", "sample", "label", "pairs", "reference", "dpo", "answer", "eval")
NODE = "stage"  # the variant of a whole node
PACKAGES = {"ours_liger": "liger_kernel", "trl_liger": "liger_kernel", "vllm": "vllm"}
CHAIN_SIZES = ("data.tasks.preference=256", "data.tasks.test=96", "data.tasks.unseen_tasks=48")


@dataclass(frozen=True)
class Size:
    """A shape and its work: the model's name in MODELS; conversations or pairs per step, in `steps` steps of an epoch;
    prompts to sample for, and the tokens of an answer; the micro-batch that TRL tries first; overrides of the whole
    chain."""

    model: str
    batch_size: int
    steps: int
    prompts: int
    answer: int = 128
    micro_batch: int = 64
    max_length: int = 1024
    lengths: str = "drawn"
    adapter: str = "none"
    chain: tuple[str, ...] = CHAIN_SIZES

    @property
    def config(self) -> dict[str, Any]:
        return MODELS[self.model]

    @cached_property
    def widths(self) -> mfu.Widths:
        return mfu.Widths.of(self.config)

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides of sft and dpo, in the whole chain and alone."""
        return tuple(f"{stage}.adapter={self.adapter}" for stage in ("sft", "dpo"))


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def published(name: str) -> dict[str, Any]:
    """Return the config of conf/model/NAME.yaml."""
    config: Any = OmegaConf.to_container(
        OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml").config
    )
    return config


MODELS = {
    "tiny": llama(64, 128, 2, 4, 1024),
    "SmolLM2-135M": published("smollm2_135m"),
    "SmolLM2-1.7B": llama(2048, 8192, 24, 32, 49152),
    "Llama-3.1-8B": published("llama31_8b"),
}
TINY: dict[str, Any] = {
    "answer": 8,
    "max_length": 128,
    "lengths": "20+12",
    "chain": ("recipe=tiny",),
}
LONG: dict[str, Any] = {"micro_batch": 4, "max_length": 4096, "adapter": "lora"}
SIZES = {  # in the order in which they are measured
    "tiny": Size("tiny", 4, 2, prompts=4, **TINY),
    "0.1B": Size("SmolLM2-135M", 64, 8, prompts=256),
    "1.7B": Size("SmolLM2-1.7B", 64, 4, prompts=256, micro_batch=16),
    "8B": Size("Llama-3.1-8B", 64, 2, prompts=128, micro_batch=16, adapter="lora"),
    "Llama-3.1-8B-4k": Size("Llama-3.1-8B", 16, 2, prompts=64, **LONG),
}


def passes(size: Size, stage: str) -> int:
    if stage not in ("sft", "dpo"):
        return mfu.FORWARD
    return mfu.TRAINING if size.adapter == "none" else mfu.ADAPTER


def missing(shape: str, variant: str, has_gpu: bool) -> str:
    """Return why this machine cannot measure a cell, or ''."""
    if not has_gpu and shape != "tiny":
        return "this machine has no GPU"
    if variant == "vllm" and os.environ.get("PLUMBLINE_VLLM_PYTHON"):
        return ""
    package = PACKAGES.get(variant, "json")
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"
