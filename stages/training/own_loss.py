"""A user-defined loss of DPO's pairs (`dpo.own`), and its check on a tiny model before anything is trained.

The function gets six tensors of shape [pairs, width], and returns a loss per pair: a tensor of shape [pairs]."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.training.own_function import OwnFunction

# Prompt, chosen and rejected completion of the pairs on which a loss is tried. Lengths differ, so that micro-batches of
# other sizes have another width.
MADE_UP = (
    ([1, 2, 3], [4, 5], [6, 7, 8, 9]),
    ([2], [3, 8, 1, 9, 4], [5]),
    ([7, 7], [6], [2, 3]),
    ([5, 1, 4, 2], [9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 9, 9]),
)
TRIED_SIZES = (4, 2, 1)  # pairs in a micro-batch
FINITE = "Avoid roots, quotients and logarithms of 0"
TOLERANCE = 1e-4  # the difference of a pair's loss in two micro-batches that rounding explains, relative and in nats


class PairTokens(NamedTuple):
    """Log-probs in nats of the tokens of pairs, 0 where a mask is False: at prompts, padding and untrained tokens. The
    arguments of a user-defined loss, in this order."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor

    @classmethod
    def of_halves(cls, policy: Tensor, reference: Tensor, mask: Tensor) -> "PairTokens":
        """Return tensors of (2 pairs, width), all chosen above all rejected, as arguments."""
        log_probs = torch.where(mask, policy.float(), 0.0)
        return cls(*log_probs.chunk(2), *reference.chunk(2), *mask.chunk(2))


class OwnLoss(OwnFunction):
    """A loss of pairs, as it is called in training."""

    arguments = PairTokens._fields

    def __call__(self, pairs: PairTokens) -> Tensor:
        """Return the loss of every pair. Raise UserError if the function fails, or returns something else."""
        losses = self.call(*pairs)
        shape = [len(pairs.chosen_mask)]
        if not isinstance(losses, Tensor):
            raise self.error(f"returns {losses!r:.60}", shape)
        if [*losses.shape] != shape:
            raise self.error(f"returns a tensor of shape {[*losses.shape]}", shape)
        if not losses.is_floating_point():
            raise self.error(f"returns a tensor of {losses.dtype}", shape)
        return losses

    def error(self, problem: str, shape: list[int]) -> UserError:
        way_out = f"Return one loss per pair: here a tensor of floats of shape {shape}"
        return UserError(f"{self.place}: it {problem}. {way_out}.")


def load_own_loss(own: Own, key: str, node: Path) -> OwnLoss:
    """Return the user's loss, after its check. Raise UserError if it cannot train."""
    loss = OwnLoss(own, key, node)
    with torch.random.fork_rng(
        devices=[]
    ):  # the training's random numbers must not depend on the check
        try_loss(loss)
    return loss


def try_loss(loss: OwnLoss) -> None:
    """Try a loss on a tiny model with random weights. It starts as its own reference, as a policy does.
    Raise UserError for a loss that is not finite, has no gradient, or depends on other pairs of a micro-batch."""
    policy = tiny_model(seed=0)
    other = tiny_model(seed=1)
    require_gradient(
        loss, policy, policy, "where the policy is its reference, as before the first step"
    )
    require_gradient(loss, policy, other, "where the policy is not its reference", may_be_flat=True)
    size = TRIED_SIZES[0]
    whole = losses_in_parts(loss, policy, other, size)
    for smaller in TRIED_SIZES[1:]:
        parts = losses_in_parts(loss, policy, other, smaller)
        if not torch.allclose(parts, whole, TOLERANCE, TOLERANCE):
            problem = f"gives the losses {rounded(whole)} in a micro-batch of {size} pairs, and {rounded(parts)} of {smaller}"
            rule = "The loss of a pair must not depend on other pairs or on padding: use the masks, and average nothing over pairs"
            raise UserError(f"{loss.place}: it {problem}. {rule}.")


def require_gradient(
    loss: OwnLoss, policy: nn.Module, reference: nn.Module, when: str, may_be_flat: bool = False
) -> None:
    """Raise UserError if a loss or its gradient is not finite, or there is no gradient. `may_be_flat`: it may be 0."""
    losses = loss(made_up_pairs(policy, reference, MADE_UP))
    if not losses.isfinite().all():
        raise UserError(f"{loss.place}: it gives the losses {rounded(losses)} {when}. {FINITE}.")
    if not losses.requires_grad:
        problem = "its result has no gradient"
        way_out = "Compute it from policy_chosen and policy_rejected, without detach(), item() or no_grad()"
        raise UserError(f"{loss.place}: {problem}. {way_out}.")
    parameters = [*policy.parameters()]
    gradients = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
    sizes = torch.stack([each.abs().max() for each in gradients])
    if not sizes.isfinite().all():
        raise UserError(f"{loss.place}: its gradient is not finite {when}. {FINITE}.")
    if not may_be_flat and not sizes.any():
        result = "so training would change nothing. Write a loss that has a slope there"
        raise UserError(f"{loss.place}: its gradient is 0 {when}, {result}.")


def losses_in_parts(loss: OwnLoss, policy: nn.Module, reference: nn.Module, size: int) -> Tensor:
    """Return the losses of the made-up pairs, in micro-batches of `size` pairs."""
    parts = list[Tensor]()
    with torch.no_grad():
        for start in range(0, len(MADE_UP), size):
            part = MADE_UP[start : start + size]
            parts.append(loss(made_up_pairs(policy, reference, part)).float())
    return torch.cat(parts)


def made_up_pairs(policy: nn.Module, reference: nn.Module, pairs: Any) -> PairTokens:
    """Return the arguments of a loss for pairs of token ids, padded to the longest."""
    rows = [*completions(pairs, chosen=True), *completions(pairs, chosen=False)]
    ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in rows], batch_first=True)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        mask[i, len(prompt) : len(prompt) + len(answer)] = True
    mask = mask[:, 1:]
    with torch.no_grad():
        reference_log_probs = torch.where(mask, token_log_probs(reference, ids), 0.0)
    return PairTokens.of_halves(token_log_probs(policy, ids), reference_log_probs, mask)


def completions(pairs: Any, chosen: bool) -> Iterator[tuple[list[int], list[int]]]:
    for prompt, chosen_ids, rejected_ids in pairs:
        yield prompt, chosen_ids if chosen else rejected_ids


def token_log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the log-prob of every token behind the first. Padding on the right changes none, as attention is causal."""
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)  # type: ignore[no-any-return]


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 16)
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5)
    return LlamaForCausalLM(config)


def rounded(losses: Tensor) -> str:
    return "[" + ", ".join(f"{loss:.4g}" for loss in losses.tolist()) + "]"
