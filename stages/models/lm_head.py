"""TRL's fused LM head for the CPU: log-probs of labels, without the logits of a large batch in memory.

On CUDA, TRL scores only positions with a label, in Triton. Elsewhere it scores every position, multiplies in fp32, and
passes over each tile a dozen times, which is slow on a CPU. `CPULogProbFunction` computes the same function in
products of 1,024 tokens by the whole vocabulary, in the model's precision. It then reads the logits for 32 tokens at a
time, so that they stay in the cores' caches."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from stages.models.run_attention import autocast_dtype

# Tokens per matrix product, and tokens whose logits are read together. With a vocabulary of 50,000, the logits of
# 1,024 tokens take 100 MB in bf16.
PRODUCT_TOKENS = 1024
READ_TOKENS = 32
# for more tokens, the forward stores no probabilities and the backward recomputes logits
MOST_KEPT_TOKENS = 2048
STATISTICS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
score_as_trl = ChunkedLogProbFunction.apply  # before `install_cpu_head` replaces it


class CPULogProbFunction(torch.autograd.Function):
    """TRL's ChunkedLogProbFunction for a head without bias and soft cap, with its outputs. Gradients flow through the
    log-probs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (tokens, hidden)
        weight: Tensor,  # (vocabulary, hidden)
        targets: Tensor,  # (tokens,)
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return each (tokens,): the target's log-prob, then every one of `STATISTICS`, None if not in `outputs`. Logits
        are multiplied by `scale`."""
        dtype = autocast_dtype(hidden)
        exact = torch.promote_types(dtype, torch.float32)
        ctx.dtype = dtype
        ctx.scale = scale
        keeps_probabilities = ctx.needs_input_grad[0] and len(hidden) <= MOST_KEPT_TOKENS
        asked = [name for name in STATISTICS if name in outputs]
        head = weight.to(dtype)
        parts = defaultdict[str, list[Tensor]](list)  # of each output, by tile
        probabilities = list[Tensor]()
        products = torch.split(hidden, PRODUCT_TOKENS)
        for rows, target in zip(products, torch.split(targets, PRODUCT_TOKENS), strict=True):
            chunk = compute_logits(rows.to(dtype), head, scale)
            tiles = torch.split(chunk, READ_TOKENS)
            for logits, label in zip(tiles, torch.split(target, READ_TOKENS), strict=True):
                log_p = logits.log_softmax(-1, dtype=exact)
                p = log_p.exp()
                # log_softmax loses small numbers: with 49,152 tokens, p may sum to 1.00002. Their exact sum mends it.
                target_log_p = log_p.gather(-1, label[:, None])[:, 0] - p.sum(-1).log()
                parts["log_probs"].append(target_log_p)
                for name in asked:
                    parts[name].append(statistic(name, logits, log_p, p, label))
                if keeps_probabilities:
                    logits.copy_(gradient_by_logits(p, label, target_log_p, scale))
            if keeps_probabilities:
                probabilities.append(chunk)
        joined = {name: torch.cat(of_tiles) for name, of_tiles in parts.items()}
        log_probs = joined.pop("log_probs")
        ctx.save_for_backward(hidden, weight, targets, log_probs, *probabilities)
        ctx.mark_non_differentiable(*joined.values())
        return log_probs, *map(joined.get, STATISTICS)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states and head, from stored probabilities or from recomputed logits."""
        hidden, weight, targets, log_probs, *probabilities = ctx.saved_tensors
        head = weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        for i, start in enumerate(range(0, max(1, len(hidden)), PRODUCT_TOKENS)):
            product = slice(start, start + PRODUCT_TOKENS)
            rows = hidden[product].to(ctx.dtype)
            g = grad[product]
            if probabilities:
                p = probabilities[i]
            else:
                p = compute_logits(rows, head, ctx.scale).softmax(-1)
                p = gradient_by_logits(p, targets[product], log_probs[product], ctx.scale)
            # times (tokens, hidden): smaller than p, (tokens, vocabulary)
            grad_hidden[product] = (p @ head) * -g[:, None]
            if ctx.needs_input_grad[1]:
                part = p.t() @ (rows * -g[:, None]).to(ctx.dtype)
                if grad_weight is None:
                    grad_weight = part.to(weight.dtype)
                else:
                    grad_weight.add_(part)
        return grad_hidden, grad_weight, None, None, None


def statistic(name: str, logits: Tensor, log_p: Tensor, p: Tensor, label: Tensor) -> Tensor:
    """Return one of `STATISTICS`, (tokens,), from logits, log-probs and probabilities, (tokens, vocabulary)."""
    match name:
        case "entropy":
            return -torch.linalg.vecdot(p, log_p)
        case "log_sum_sq_probs":
            return (2 * log_p).logsumexp(-1)
        case "mean_logits":
            return log_p.mean(-1) + (logits[:, 0] - log_p[:, 0])
        case "is_top1":
            return log_p.max(-1).indices == label
    raise ValueError(f"{name} is none of {', '.join(STATISTICS)}")


def gradient_by_logits(p: Tensor, target: Tensor, log_p: Tensor, scale: float) -> Tensor:
    """Write the gradient of -log p(target) by the head's output, (tokens, vocabulary), into `p`, and return it: p, minus
    1 at the target, computed as expm1(log p), because rounding would lose the digits of p close to 1; times `scale`."""
    p.scatter_(-1, target[:, None], log_p.expm1()[:, None].to(p.dtype))
    if scale != 1:
        p.mul_(scale)
    return p


def compute_logits(rows: Tensor, weight: Tensor, scale: float) -> Tensor:
    logits = linear(rows, weight)
    if scale != 1:
        logits = logits * scale
    return logits


class FusedHead:
    """The function that TRL's fused LM head calls: ours on a CPU, TRL's on other devices, and for a bias or a soft cap."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        if hidden.device.type == "cpu" and bias is None and softcap is None:
            factor = scale / temperature
            return CPULogProbFunction.apply(hidden, weight, targets, factor, outputs)  # type: ignore[no-any-return,no-untyped-call]
        return score_as_trl(  # type: ignore[no-any-return,no-untyped-call]
            hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs
        )


def score_labelled(device: torch.device) -> bool:
    """Say that only positions with a label are scored: TRL asks it as `_use_triton`."""
    return True


def install_cpu_head() -> None:
    """Make TRL's fused LM head call `CPULogProbFunction` on a CPU, and score only positions with a label there too."""
    ChunkedLogProbFunction.apply = FusedHead.apply  # type: ignore[method-assign]
    trl_utils._use_triton = score_labelled
