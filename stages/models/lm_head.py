"""TRL's fused LM head for the CPU: log-probs of labels, without the logits of a large batch in memory.

On CUDA, TRL scores only positions with a label, in Triton. Elsewhere it scores every position, multiplies in fp32, and
passes over each tile a dozen times, which is slow on a CPU. `CPULogProbFunction` computes the same function in
products of 1,024 tokens by the whole vocabulary, in the model's precision. It then reads the logits for 32 tokens at a
time, so that they stay in the cores' caches."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from trl.trainer import utils as trl_utils

# Tokens per matrix product, and tokens whose logits are read together. With a vocabulary of 50,000, the logits of
# 1,024 tokens take 100 MB in bf16.
PRODUCT_TOKENS, READ_TOKENS = 1024, 32
# for more tokens, the forward stores no probabilities and the backward recomputes logits
MOST_KEPT_TOKENS = 2048
# the derivative of the logits by the head's output; None stands for 1
Slope = Tensor | float | None
STATISTICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


class CPULogProbFunction(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction, with its arguments and outputs. Gradients flow through the log-probs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (tokens, hidden)
        weight: Tensor,  # (vocabulary, hidden)
        bias: Tensor | None,
        targets: Tensor,  # (tokens,)
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = STATISTICS,
    ) -> tuple[Tensor | None, ...]:
        """Return each (tokens,): the target's log-prob, then every one of `STATISTICS`, None if not in `outputs`."""
        dtype = (
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        )
        exact = torch.promote_types(dtype, torch.float32)
        ctx.settings = dtype, scale, softcap, temperature
        keeps_probabilities = (
            ctx.needs_input_grad[0] and softcap is None and len(hidden) <= MOST_KEPT_TOKENS
        )
        head, statistics_by_chunk, probabilities = weight.to(dtype), [], []
        for rows, target in zip(
            *(torch.split(t, PRODUCT_TOKENS) for t in (hidden, targets)), strict=True
        ):
            chunk, slope = compute_logits(rows.to(dtype), head, bias, scale, softcap, temperature)
            for logits, label in zip(
                torch.split(chunk, READ_TOKENS), torch.split(target, READ_TOKENS), strict=True
            ):
                log_p = logits.log_softmax(-1, dtype=exact)
                p, log_z = log_p.exp(), logits[:, 0] - log_p[:, 0]
                # log_softmax loses small numbers: with 49,152 tokens, p may sum to 1.00002. Their exact sum mends it.
                target_log_p = log_p.gather(-1, label[:, None])[:, 0] - p.sum(-1).log()
                statistics = (
                    -torch.linalg.vecdot(p, log_p) if "entropy" in outputs else None,
                    (2 * log_p).logsumexp(-1) if "log_sum_sq_probs" in outputs else None,
                    log_p.mean(-1) + log_z if "mean_logits" in outputs else None,
                    log_p.max(-1).indices == label if "is_top1" in outputs else None,
                )
                statistics_by_chunk.append((target_log_p, *statistics))
                if keeps_probabilities:
                    logits.copy_(gradient_by_logits(p, label, target_log_p, slope))
            probabilities += [chunk] if keeps_probabilities else []
        results = [
            None if parts[0] is None else torch.cat(parts)
            for parts in zip(*statistics_by_chunk, strict=True)
        ]
        ctx.save_for_backward(hidden, weight, bias, targets, results[0], *probabilities)
        ctx.mark_non_differentiable(*(r for r in results[1:] if r is not None))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states and head, from stored probabilities or from recomputed logits."""
        dtype, *settings = ctx.settings
        hidden, weight, bias, targets, log_probs, *probabilities = ctx.saved_tensors
        head = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        grad_bias = None
        chunks = (
            torch.split(t, PRODUCT_TOKENS) for t in (hidden, targets, log_probs, grad, grad_hidden)
        )
        for i, (rows, target, log_p, g, out) in enumerate(zip(*chunks, strict=True)):
            rows = rows.to(dtype)
            if probabilities:
                p = probabilities[i]
            else:
                logits, slope = compute_logits(rows, head, bias, *settings)
                p = gradient_by_logits(logits.softmax(-1), target, log_p, slope)
            # times (tokens, hidden): smaller than p, (tokens, vocabulary)
            out.copy_((p @ head) * -g[:, None])
            if ctx.needs_input_grad[1]:
                part = p.t() @ (rows * -g[:, None]).to(dtype)
                grad_weight = (
                    part.to(weight.dtype) if grad_weight is None else grad_weight.add_(part)
                )
            if ctx.needs_input_grad[2]:
                part = p.t() @ -g.to(dtype)
                grad_bias = part.to(weight.dtype) if grad_bias is None else grad_bias.add_(part)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def gradient_by_logits(p: Tensor, target: Tensor, log_p: Tensor, slope: Slope) -> Tensor:
    """Write the gradient of -log p(target) by the logits, (tokens, vocabulary), into `p`, and return it: p, minus 1 at
    the target, computed as expm1(log p), because rounding would lose the digits of p close to 1."""
    p.scatter_(-1, target[:, None], log_p.expm1()[:, None].to(p.dtype))
    return p if slope is None else p.mul_(slope)


def compute_logits(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> tuple[Tensor, Slope]:
    """Return the logits, (tokens, vocabulary), scaled, soft-capped and over the temperature, and their derivative."""
    logits = linear(rows, weight, None if bias is None else bias.to(rows.dtype))
    if softcap is not None:
        capped = (logits * (scale / softcap)).tanh()
        return capped * (softcap / temperature), (1 - capped * capped) * (scale / temperature)
    return (
        (logits, None)
        if scale == temperature
        else (logits * (scale / temperature), scale / temperature)
    )


class FusedHead:
    """The function that TRL's fused LM head calls: ours on a CPU, TRL's on other devices."""

    @staticmethod
    def apply(hidden: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        if hidden.device.type == "cpu":
            return CPULogProbFunction.apply(hidden, *arguments)  # type: ignore[no-any-return,no-untyped-call]
        # imported here, as it may need Triton
        from trl.kernels import ChunkedLogProbFunction

        return ChunkedLogProbFunction.apply(hidden, *arguments)  # type: ignore[no-any-return]


def install_cpu_head() -> None:
    """Make TRL's fused LM head call `CPULogProbFunction` on a CPU, and score only positions with a label there too."""
    trl_utils._ChunkedLogProbFunction = FusedHead
    trl_utils._use_triton = lambda device: True
