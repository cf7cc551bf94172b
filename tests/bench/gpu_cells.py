"""The cells of `gpu_chain`: the shapes of models, the work of each, and the ways to do it."""

import importlib.util
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from stages.hardware.model_shape import ModelShape
from tests.bench import mfu
from tests.helpers import ROOT

VARIANTS = {
    "sft": ("ours", "ours_liger", "ours_padded"),
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
}
# whole nodes
CHAIN = ("base", "data", "sft", "sample", "label", "pairs", "reference", "dpo", "answer", "eval")
NODE = "stage"  # the variant of a whole node
PACKAGES = {"ours_liger": "liger_kernel", "trl_liger": "liger_kernel", "vllm": "vllm"}
CHAIN_SIZES = ("data.tasks.preference=256", "data.tasks.test=96", "data.tasks.unseen_tasks=48")


@dataclass(frozen=True)
class Size:
    """A shape and its work: conversations or pairs per step, in `steps` steps of an epoch; prompts to sample for, and
    the tokens of an answer; the micro-batch that TRL tries first; overrides of the whole chain."""

    config: dict[str, Any]
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
    def shape(self) -> ModelShape:
        shape = ModelShape.from_config(self.config)
        assert shape is not None
        return shape

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides of sft and dpo, in the whole chain and alone."""
        return tuple(f"{stage}.adapter={self.adapter}" for stage in ("sft", "dpo"))


def llama(
    hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int
) -> dict[str, Any]:
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }
    return config | {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": True,
    }


def published(name: str) -> dict[str, Any]:
    """Return the config of conf/model/NAME.yaml."""
    config: Any = OmegaConf.to_container(
        OmegaConf.load(ROOT / "conf" / "model" / f"{name}.yaml").config
    )
    return config


SIZES = {  # the cheapest first
    "tiny": Size(
        llama(64, 128, 2, 4, 1024),
        4,
        2,
        prompts=4,
        answer=8,
        max_length=128,
        lengths="20+12",
        chain=("recipe=tiny",),
    ),
    "0.1B": Size(published("smollm2_135m"), 64, 8, prompts=256),
    "1.7B": Size(llama(2048, 8192, 24, 32, 49152), 64, 4, prompts=256, micro_batch=16),
    "8B": Size(published("llama31_8b"), 64, 2, prompts=128, micro_batch=16, adapter="lora"),
}


def passes(size: Size, stage: str) -> int:
    if stage not in ("sft", "dpo"):
        return mfu.FORWARD
    return mfu.TRAINING if size.adapter == "none" else mfu.ADAPTER


def missing(shape: str, variant: str, has_gpu: bool) -> str:
    """Return why this machine cannot measure a cell, or ''."""
    if not has_gpu and shape != "tiny":
        return "this machine has no GPU"
    package = PACKAGES.get(variant, "json")
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"
