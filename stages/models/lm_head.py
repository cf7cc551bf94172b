"""TRL's fused LM head for the CPU: log-probs of labels, without ever holding the logits of a large batch.

On CUDA, TRL scores only the positions that have a label, in Triton. Elsewhere it scores every position, multiplies in
fp32 and goes over its tiles a dozen times, which is much of a training step on a CPU. `OnCPU` computes the same
function as suits a CPU: the whole vocabulary, in products of up to 1,024 tokens in the precision of the model; what is
read off the logits, for 32 tokens at a time, whose logits stay in the cores' caches meanwhile.
"""

from typing import Any

import torch
from torch.nn.functional import linear
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

# Tokens of a product, and tokens whose logits are read together. 1,024 tokens have 100 MB of logits in bf16 where the
# vocabulary has 50,000.
PRODUCT_TOKENS, READ_TOKENS = 1024, 32
MOST_KEPT_TOKENS = (
    2048  # tokens at most whose probabilities the forward keeps; of more, the backward computes the logits again
)
Slope = torch.Tensor | float | None  # of the logits by the head's output, None where it is 1
STATISTICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class CPULogProbFunction(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction, arguments and outputs. SFT and DPO take a gradient of log-probs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (tokens, hidden)
        weight: torch.Tensor,  # (vocabulary, hidden)
        bias: torch.Tensor | None,
        targets: torch.Tensor,  # (tokens,)
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = STATISTICS,
    ) -> tuple[torch.Tensor | None, ...]:
        """Each (tokens,): the log-prob of the target, then what `outputs` names of `STATISTICS`, None for the rest."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)
        ctx.settings = dtype, scale, softcap, temperature
        keeps_probabilities = ctx.needs_input_grad[0] and softcap is None and len(hidden) <= MOST_KEPT_TOKENS
        head, statistics_by_chunk, probabilities = weight.to(dtype), [], []
        for rows, target in zip(
            torch.split(hidden, PRODUCT_TOKENS), torch.split(targets, PRODUCT_TOKENS), strict=True
        ):
            chunk, slope = compute_logits(rows.to(dtype), head, bias, scale, softcap, temperature)
            for logits, label in zip(torch.split(chunk, READ_TOKENS), torch.split(target, READ_TOKENS), strict=True):
                log_p = logits.log_softmax(-1, dtype=exact)
                target_log_p, log_z = log_p.gather(-1, label[:, None])[:, 0], logits[:, 0] - log_p[:, 0]
                statistics = (
                    -torch.linalg.vecdot(log_p.exp(), log_p) if "entropy" in outputs else None,
                    (2 * log_p).logsumexp(-1) if "log_sum_sq_probs" in outputs else None,
                    log_p.mean(-1) + log_z if "mean_logits" in outputs else None,
                    log_p.max(-1).indices == label if "is_top1" in outputs else None,
                )
                statistics_by_chunk.append((target_log_p, *statistics))
                if keeps_probabilities:
                    logits.copy_(gradient_by_logits(log_p.exp_(), label, target_log_p, slope))
            probabilities += [chunk] if keeps_probabilities else []
        results = [None if parts[0] is None else torch.cat(parts) for parts in zip(*statistics_by_chunk, strict=True)]
        ctx.save_for_backward(hidden, weight, bias, targets, results[0], *probabilities)
        ctx.mark_non_differentiable(*(r for r in results[1:] if r is not None))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden states and head, from what the forward kept, else from the logits again."""
        dtype, *settings = ctx.settings
        hidden, weight, bias, targets, log_probs, *probabilities = ctx.saved_tensors
        head, grad_hidden, grad_weight, grad_bias = weight.to(dtype), torch.empty_like(hidden), None, None
        chunks = (torch.split(t, PRODUCT_TOKENS) for t in (hidden, targets, log_probs, grad, grad_hidden))
        for i, (rows, target, log_p, g, out) in enumerate(zip(*chunks, strict=True)):
            rows = rows.to(dtype)
            if probabilities:
                p = probabilities[i]
            else:
                logits, slope = compute_logits(rows, head, bias, *settings)
                p = gradient_by_logits(logits.softmax(-1), target, log_p, slope)
            out.copy_((p @ head) * -g[:, None])  # times (tokens, hidden): smaller than p, (tokens, vocabulary)
            if ctx.needs_input_grad[1]:
                part = p.t() @ (rows * -g[:, None]).to(dtype)
                grad_weight = part.to(weight.dtype) if grad_weight is None else grad_weight.add_(part)
            if ctx.needs_input_grad[2]:
                part = p.t() @ -g.to(dtype)
                grad_bias = part.to(weight.dtype) if grad_bias is None else grad_bias.add_(part)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def gradient_by_logits(p: torch.Tensor, target: torch.Tensor, log_p: torch.Tensor, slope: Slope) -> torch.Tensor:
    """The gradient of -log p(target) by the head's output, in the place of the probabilities: these, with 1 subtracted
    at the target. There p - 1 is written as expm1(log p): a p close to 1 has lost its digits to rounding."""
    p.scatter_(-1, target[:, None], log_p.expm1()[:, None].to(p.dtype))
    return p if slope is None else p.mul_(slope)


def compute_logits(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> tuple[torch.Tensor, Slope]:
    """The model's logits, (tokens, vocabulary): scaled, soft-capped, over the temperature; and their derivative."""
    logits = linear(rows, weight, None if bias is None else bias.to(rows.dtype))
    if softcap is not None:
        capped = (logits * (scale / softcap)).tanh()
        return capped * (softcap / temperature), (1 - capped * capped) * (scale / temperature)
    return (logits, None) if scale == temperature else (logits * (scale / temperature), scale / temperature)


class FusedHead:
    """What TRL's fused head calls, by device."""

    @staticmethod
    def apply(hidden: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor | None, ...]:
        return (CPULogProbFunction if hidden.device.type == "cpu" else ChunkedLogProbFunction).apply(
            hidden, *arguments
        )  # type: ignore[no-any-return]


def install_cpu_head() -> None:
    """Have TRL's fused LM head call `OnCPU` on a CPU, and score only the positions that have a label there, too."""
    trl_utils._ChunkedLogProbFunction = FusedHead
    trl_utils._use_triton = lambda device: True
