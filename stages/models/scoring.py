"""Scoring pairs: their token ids, the log-prob of every completion token, and how far apart two scorings may be.

What was sampled is what is scored and trained. Text says less than the ids that it was decoded from. A tokenizer may
cut it up in another way than it was drawn, and one that was cut off would get an end of turn that was never drawn.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.config.choices import Forward, Precision
from stages.config.errors import UserError
from stages.models import lm_head
from stages.models.contract import Contract
from stages.models.packing import pack_pairs
from stages.models.rendering import ContractError
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs

# Mean difference of log-probs per token, in nats, that rounding explains. In bf16, 0.021 was seen over 62 short pairs.
ROUNDING_GAP = {Precision.fp32: 1e-5, Precision.bf16: 0.03}


def allowed_gap(precision: Precision, nats: float) -> float:
    """Return how far apart two scorings of one model may be, in nats per token. `nats` is the mean |log-prob|:
    rounding errors grow with it, and from 1 nat on so does what is allowed."""
    return ROUNDING_GAP[precision] * max(1.0, nats)


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic in which transformers' Trainer runs a model of fp32 weights under `bf16=True`."""
    if precision is Precision.bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def round_weights_once(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Inside, autocast rounds a weight in the first forward and not again: torch keeps the copies until the outermost
    autocast ends, which is this one. It casts nothing itself. For many forwards of weights that do not change."""
    return torch.autocast(device.type, enabled=False)


def install_scoring(model: PreTrainedModel, forward: Forward = Forward.shared_prefix) -> PreTrainedModel:
    """Give the model TRL's fused LM head and a trainer's forward: policy and reference score by one arithmetic."""
    if forward is Forward.shared_prefix:
        pack_pairs(model)
    lm_head.install_cpu_head()
    add_fused_lm_head(model)
    return model


def sampled_ids(pair: Pair, contract: Contract) -> list[list[int] | None]:
    """The ids that were drawn as chosen and as rejected. None where there are none, where they were drawn under
    another contract, and where the text has been changed since."""
    sides = (
        (pair.chosen, pair.chosen_token_ids, pair.chosen_tokenizer),
        (pair.rejected, pair.rejected_token_ids, pair.rejected_tokenizer),
    )
    return [ids_if_unchanged(ids, of, messages[0]["content"], contract) for messages, ids, of in sides]


def ids_if_unchanged(ids: list[int] | None, digest: str | None, text: str, contract: Contract) -> list[int] | None:
    """Ids drawn under the contract of digest `of`, where that is this one and they still say the text."""
    return ids if ids is not None and digest == contract.digest and contract.text(ids) == text else None


def tokenize_pairs(
    pairs: Iterable[Pair], contract: Contract, context: int | None, dropped: Dropped
) -> Iterator[tuple[Pair, PairLogProbs, list[list[int] | None], int]]:
    """Yield pairs as token ids, with what `drawn` gave and the tokens of the longer side with its prompt. Those that
    the contract cannot render, or a model that reads `most` tokens cannot hold, go to `dropped`."""
    for pair in pairs:
        completion_ids = sampled_ids(pair, contract)
        try:
            ids = tokenize_pair(pair, contract, completion_ids)
        except ContractError as reason:
            dropped.add(pair.id, reason)
            continue
        tokens = len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids))
        if context and tokens > context:
            dropped.add(pair.id, f"longer than the {context:,} tokens that the model reads", tokens)
        else:
            yield pair, ids, completion_ids, tokens


def tokenize_pair(
    pair: Pair, contract: Contract, completion_ids: list[list[int] | None] | None = None
) -> PairLogProbs:
    """The pair as token ids, without log-probs: what was drawn, else its text under the contract. `found` is what
    `drawn` gave, where it was asked before.

    Raises:
        ContractError: where the text cannot be rendered, or a completion has no token.
    """
    prompt = contract.prompt(pair.prompt)
    chosen, rejected = sampled_ids(pair, contract) if completion_ids is None else completion_ids
    if chosen is None:
        _, chosen = contract.completion(pair.prompt, pair.chosen)
    if rejected is None:
        _, rejected = contract.completion(pair.prompt, pair.rejected, pair.rejected_finish_reason == "stop")
    if not (chosen and rejected):
        raise ContractError("an unfinished completion holds no token")
    return PairLogProbs(pair.id, prompt, chosen, rejected, [], [])


@torch.no_grad()
def pair_log_probs(
    model: PreTrainedModel, pairs: Sequence[PairLogProbs], pad_id: int, precision: Precision
) -> list[tuple[list[float], list[float]]]:
    """Log-prob of every completion token given what precedes it, of chosen and of rejected.

    One forward of a model with a fused LM head; in fp32 the batch matters below 1e-5 per token.
    """
    sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    length = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor(prompt + completion)
        attention[i, :end] = 1
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    batch = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    batch = {name: values.to(model.device) for name, values in batch.items()}
    with autocast(precision, model.device):
        output = model(**batch, use_cache=False, fused_lm_head=True)
    scored = output.log_probs.float().cpu()  # (rows, length - 1): position t scores token t + 1
    log_probs = [scored[i, len(p) - 1 : len(p) + len(c) - 1].tolist() for i, (p, c) in enumerate(sequences)]
    return list(zip(log_probs[: len(pairs)], log_probs[len(pairs) :], strict=True))


def join_reference(
    pairs: Iterable[Pair], reference: Iterable[PairLogProbs]
) -> Iterator[tuple[Pair, PairLogProbs | None]]:
    """Every pair with the reference's log-probs, which come in the order of the pairs; None where it has none."""
    scored = iter(reference)
    log_probs = next(scored, None)
    for pair in pairs:
        if log_probs and log_probs.id == pair.id:
            yield pair, log_probs
            log_probs = next(scored, None)
        else:
            yield pair, None


def require_same_tokens(pair: Pair, scored: PairLogProbs, contract: Contract) -> None:
    """Raise UserError where the reference scored other token ids than those of the pair."""
    tokens = tokenize_pair(pair, contract)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        if getattr(scored, column) != getattr(tokens, column):
            raise UserError(
                f"pair {pair.id}: the reference scored other {column} than the pair has. Build the reference "
                "again: rebuild=reference."
            )
