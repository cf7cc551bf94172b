"""MFU, the share of a processor's peak rate that the model's own operations take (PaLM, arXiv:2204.02311, appendix B).

A forward takes two operations per weight and token, and a backward twice as many: 6 N per token in training, 4 N where
the weights are frozen under an adapter, 2 N without training. N are the weights of the layers and of the head, so a
tied embedding counts once and one that is only looked up does not. Every token counts once: a pair's prompt, no
padding, nothing that is computed again. Attention's operations are not in it; `attention_share` says how many more
they are.
"""

import re
from dataclasses import replace

from stages.config.choices import GPUS
from stages.hardware.model_shape import ModelShape

OTHER_CARDS = {"nvl", "laptop", "d"}  # these words name a slower card than the one in GPUS
TRAINING, ADAPTER, FORWARD = 3, 2, 1  # passes, each of two operations per weight


def weights(shape: ModelShape) -> int:
    """Return N, the weights that a token is multiplied by."""
    return replace(shape, experts=shape.active, tied=True).parameters


def operations(shape: ModelShape, tokens: float, passes: int) -> float:
    return 2.0 * passes * weights(shape) * tokens


def attention_share(shape: ModelShape, length: float) -> float:
    """Return attention's operations over those of the weights, for sequences of this many tokens, each of which sees
    itself and those before it."""
    return 4 * shape.layers * shape.query * (length + 1) / 2 / (2 * weights(shape))


def datasheet_peak(gpu: str, precision: str) -> float | None:
    """Return the operations per second of a GPU by the name that its driver gives, or None if GPUS lacks it."""
    words = set(re.split(r"\W+", gpu.lower()))
    for name, (*_, bf16, fp32) in GPUS.items():
        if words.issuperset(name.split("_")) and not words & OTHER_CARDS:
            return (bf16 if precision == "bf16" else fp32) * 1e12
    return None
