"""MFU, the share of a processor's peak rate that the model's own operations take (PaLM, arXiv:2204.02311, appendix B).

A forward takes two operations per weight and token, and a backward twice as many: 6 N per token in training, 4 N where
the weights are frozen under an adapter, 2 N without training. N are the weights of the layers and of the head, so a
tied embedding counts once and one that is only looked up does not. Every token counts once: a pair's prompt, no
padding, nothing that is computed again. Attention's operations are not in it; `attention_share` says how many more
they are, in layers that see every earlier token.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.config.choices import GPUS

OTHER_CARDS = {"nvl", "laptop", "d"}  # these words name a slower card than the one in GPUS
TRAINING, ADAPTER, FORWARD = 3, 2, 1  # passes, each of two operations per weight


@dataclass(frozen=True)
class Widths:
    """N, the `weights` that a token is multiplied by, and the numbers of a query in all layers with full attention."""

    weights: int
    queries: int
    vocabulary: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Widths":
        """Count the widths of a config in its model, without weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        linears = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
        text = model.config.get_text_config()
        layers = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        queries = layers.count("full_attention") * text.num_attention_heads * width
        return cls(sum(each.weight.numel() for each in linears), queries, text.vocab_size)


def operations(widths: Widths, tokens: float, passes: int) -> float:
    return 2.0 * passes * widths.weights * tokens


def attention_share(widths: Widths, length: float) -> float:
    """Return attention's operations over those of the weights, for sequences of this many tokens, each of which sees
    itself and those before it."""
    return 4 * widths.queries * (length + 1) / 2 / (2 * widths.weights)


def datasheet_peak(gpu: str, precision: str) -> float | None:
    """Return the operations per second of a GPU by the name that its driver gives, or None if GPUS lacks it."""
    words = set(re.split(r"\W+", gpu.lower()))
    for name, (*_, bf16, fp32) in GPUS.items():
        if words.issuperset(name.split("_")) and not words & OTHER_CARDS:
            return (bf16 if precision == "bf16" else fp32) * 1e12
    return None
