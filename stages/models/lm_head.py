"""TRL's fused LM head for the CPU: log-probs of labels, without ever holding the logits of a whole batch.

On CUDA, TRL scores only the positions that have a label, in Triton. Elsewhere it scores every position, multiplies in
fp32 and goes over its tiles a dozen times, which is much of a training step on a CPU. `OnCPU` computes the same
function as suits a CPU: the whole vocabulary for 256 tokens at a time (1,024 in the backward), PyTorch's softmax,
products in the precision of the model, sums over chunks in fp32.
"""

from typing import Any

import torch
from torch.nn.functional import linear
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

# Tokens at once: of a vocabulary of 50,000, about 200 MB of logits and what is made of them, forward and backward.
FORWARD, BACKWARD = 256, 1024
STATISTICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class OnCPU(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction, arguments and outputs. Only log-probs have a gradient: neither SFT nor DPO takes
    one of anything else."""

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
        ctx.terms = dtype, scale, softcap, temperature
        head, found = weight.to(dtype), []
        for rows, target in zip(torch.split(hidden, FORWARD), torch.split(targets, FORWARD), strict=True):
            logits, _ = transformed(rows.to(dtype), head, bias, scale, softcap, temperature)
            log_p = logits.log_softmax(-1, dtype=exact)
            of_target, log_z = log_p.gather(-1, target[:, None])[:, 0], logits[:, 0] - log_p[:, 0]
            statistics = (
                -torch.linalg.vecdot(log_p.exp(), log_p) if "entropy" in outputs else None,
                (2 * log_p).logsumexp(-1) if "log_sum_sq_probs" in outputs else None,
                log_p.mean(-1) + log_z if "mean_logits" in outputs else None,
                log_p.argmax(-1) == target if "is_top1" in outputs else None,
            )
            found.append((of_target, *statistics))
        results = [None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)]
        ctx.save_for_backward(hidden, weight, bias, targets, results[0])
        ctx.mark_non_differentiable(*(r for r in results[1:] if r is not None))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """The logits again, a chunk at a time, and from them the gradients of hidden states and head."""
        dtype, *terms = ctx.terms
        hidden, weight, bias, targets, log_probs = ctx.saved_tensors
        grad_weight, grad_bias = (
            torch.zeros_like(t) if needed else None
            for t, needed in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        head, grad_hidden = weight.to(dtype), torch.empty_like(hidden)
        chunks = (torch.split(t, BACKWARD) for t in (hidden, targets, log_probs, grad, grad_hidden))
        for rows, target, log_p, g, out in zip(*chunks, strict=True):
            rows = rows.to(dtype)
            logits, slope = transformed(rows, head, bias, *terms)
            p = logits.softmax(-1)
            # The gradient of -log p(target) is p, with 1 subtracted at the target. There p - 1 is written as
            # expm1(log p): a p close to 1 has lost the digits of the difference to rounding.
            p.scatter_(-1, target[:, None], log_p.expm1()[:, None].to(dtype))
            if slope is not None:
                p *= slope
            out.copy_((p @ head) * -g[:, None])  # times (tokens, hidden): smaller than p, (tokens, vocabulary)
            if grad_weight is not None:
                grad_weight += p.t() @ (rows * -g[:, None]).to(dtype)
            if grad_bias is not None:
                grad_bias += p.t() @ -g.to(dtype)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def transformed(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor | float | None]:
    """The model's logits, (tokens, vocabulary): scaled, soft-capped, over the temperature. And their derivative by the
    head's output, or None where that is 1."""
    logits = linear(rows, weight, None if bias is None else bias.to(rows.dtype))
    if softcap is not None:
        capped = (logits * (scale / softcap)).tanh()
        return capped * (softcap / temperature), (1 - capped * capped) * (scale / temperature)
    return (logits, None) if scale == temperature else (logits * (scale / temperature), scale / temperature)


class Head:
    """What TRL's fused head calls, by device."""

    @staticmethod
    def apply(hidden: torch.Tensor, *rest: Any) -> tuple[torch.Tensor | None, ...]:
        return (OnCPU if hidden.device.type == "cpu" else ChunkedLogProbFunction).apply(hidden, *rest)  # type: ignore[no-any-return]


def install() -> None:
    """Have TRL's fused LM head call `OnCPU` on a CPU, and score only the positions that have a label there, too."""
    trl_utils._ChunkedLogProbFunction = Head
    trl_utils._use_triton = lambda device: True
