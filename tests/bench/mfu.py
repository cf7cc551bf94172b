"""MFU, the share of a processor's peak rate that the model's own operations take (PaLM, arXiv:2204.02311, appendix B).

A forward takes two operations per weight and token, and a backward twice as many: 6 N per token in training, 4 N where
the weights are frozen under an adapter, 2 N without training. N are the weights of the layers and of the head, so a
tied embedding counts once and one that is only looked up does not. Every token counts once: a pair's prompt, no
padding, nothing that is computed again. Attention's operations are not in it; `attention_share` says how many more
they are, in layers that see every earlier token.
"""

import re
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from stages.config.choices import GPUS

OTHER_CARDS = {"nvl", "laptop", "d"}  # these words name a slower card than the one in GPUS
# of a measured matrix product
ROWS = 4096
TRIES = 7
# passes, each of two operations per weight
TRAINING = 3
ADAPTER = 2
FORWARD = 1


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


def measured_peak(config: PreTrainedConfig, precision: str) -> float:
    """Return the operations per second of matrix products in the shapes of one decoder layer, one after the other: the
    median of several tries after a first one."""
    from stages.models.loading import resolve_device  # TRL's own trainers run without it

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layer = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))[0]
    linears = [each for each in layer.modules() if isinstance(each, torch.nn.Linear)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = resolve_device("auto")
    factors = list[tuple[torch.Tensor, torch.Tensor]]()
    for each in linears:
        weight = torch.randn(each.weight.shape, device=device, dtype=dtype)
        inputs = torch.randn(ROWS, each.in_features, device=device, dtype=dtype)
        factors.append((inputs, weight))
    operations = sum(2 * ROWS * weight.numel() for _, weight in factors)
    rates = [operations / seconds_of(factors, device) for _ in range(TRIES + 1)]
    return statistics.median(rates[1:])


def seconds_of(factors: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> float:
    started = time.perf_counter()
    for inputs, weight in factors:
        torch.nn.functional.linear(inputs, weight)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
