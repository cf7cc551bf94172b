"""Score pairs: their token ids, the log-prob of every completion token, and the allowed gap between two scorings.

The sampled token ids are scored and trained, not the text decoded from them. A tokenizer may split that text into
other tokens, and would add an end of turn to a truncated completion."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer import add_fused_lm_head

from stages.config.choices import Forward, Precision
from stages.hardware import memory
from stages.models import lm_head
from stages.models.contract import Contract
from stages.models.packing import add_layout, pack_pairs, send_batch
from stages.models.rendering import ContractError
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs, content_id
from stages.store.text_units import count_shared_prefix

IGNORED = -100  # the label of a token that does not count
TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "chosen_mask", "rejected_mask")
# The mean gap of log-probs per token, in nats, that rounding explains. In bf16, 62 short pairs had a gap of 0.021.
ROUNDING_GAP = {Precision.fp32: 1e-5, Precision.bf16: 0.03}


def allowed_gap(precision: Precision, nats: float) -> float:
    """Return the allowed mean gap between two scorings of one model, in nats per token. `nats` is the mean |log-prob|:
    above 1 nat the allowed gap grows with it, as rounding errors do."""
    return ROUNDING_GAP[precision] * max(1.0, nats)


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context in which transformers' Trainer runs a model of fp32 weights under `bf16=True`."""
    if precision is Precision.bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def round_weights_once(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast rounds each weight once, for all forwards: torch keeps the rounded copies
    until the outermost autocast ends. It casts nothing itself. Use it while the weights do not change."""
    return torch.autocast(device.type, enabled=False)


def install_scoring(
    model: PreTrainedModel,
    forward: Forward = Forward.shared_prefix,
    outputs: tuple[str, ...] = ("log_probs",),
) -> PreTrainedModel:
    """Give the model a trainer's forward and TRL's fused LM head, so policy and reference are scored alike. `outputs`:
    what the head computes, without the logits of all positions in memory."""
    if forward is Forward.shared_prefix:
        pack_pairs(model)
    lm_head.install_cpu_head()
    add_fused_lm_head(model, outputs=outputs)
    return model


def sampled_ids(pair: Pair, contract: Contract) -> list[list[int] | None]:
    """Return the sampled token ids of chosen and of rejected. A side is None if it was not sampled, was sampled under
    another contract, or its text has changed since."""
    chosen = pair.chosen[0]["content"]
    rejected = pair.rejected[0]["content"]
    return [
        ids_if_unchanged(pair.chosen_token_ids, pair.chosen_tokenizer, chosen, contract),
        ids_if_unchanged(pair.rejected_token_ids, pair.rejected_tokenizer, rejected, contract),
    ]


def ids_if_unchanged(
    ids: list[int] | None, digest: str | None, text: str, contract: Contract
) -> list[int] | None:
    """Return `ids` if their contract has the same digest as this one, and they still decode to `text`; else None."""
    if ids is None or digest != contract.digest or contract.text(ids) != text:
        return None
    return ids


def tokenize_pairs(
    pairs: Iterable[Pair], contract: Contract, context: int | None, dropped: Dropped
) -> Iterator[tuple[Pair, PairLogProbs]]:
    """Yield each pair with its token ids. Add pairs that the contract cannot render, or whose longer side exceeds
    `context` tokens with its prompt, to `dropped`. A mismatched completion is cut to fit."""
    for pair in pairs:
        try:
            ids = tokenize_pair(pair, contract)
        except ContractError as reason:
            dropped.add(pair.id, reason)
            continue
        if context and pair.cuts_rejected:
            ids.rejected_ids = ids.rejected_ids[: max(1, context - len(ids.prompt_ids))]
        tokens = len(ids.prompt_ids) + max(len(ids.chosen_ids), len(ids.rejected_ids))
        if context and tokens > context:
            dropped.add(pair.id, f"longer than the {context:,} tokens that the model reads", tokens)
        else:
            yield pair, ids


def tokenize_pair(pair: Pair, contract: Contract) -> PairLogProbs:
    """Return the pair as token ids, without log-probs: the sampled ids, or the tokens of its text under the contract.
    Raise ContractError if the text cannot be rendered, or a completion has no token."""
    prompt = contract.prompt(pair.prompt)
    if pair.parts_early:
        context = count_shared_prefix(pair.chosen, pair.rejected)  # turns before the two part
        chosen_ids, chosen_mask = contract.continuation(pair.prompt, pair.chosen, context)
        rejected_ids, rejected_mask = contract.continuation(pair.prompt, pair.rejected, context)
        return PairLogProbs(
            pair.id, prompt, chosen_ids, rejected_ids, [], [], chosen_mask, rejected_mask
        )
    chosen, rejected = sampled_ids(pair, contract)
    if chosen is None:
        finished = pair.chosen_finish_reason == "stop"
        _, chosen = contract.completion(pair.prompt, pair.chosen, finished)
    if rejected is None:
        finished = pair.rejected_finish_reason == "stop"
        _, rejected = contract.completion(pair.prompt, pair.rejected, finished)
    if not (chosen and rejected):
        raise ContractError("a truncated completion has no token")
    return PairLogProbs(pair.id, prompt, chosen, rejected, [], [])


def divide_rows(
    costs: list[int], budget: int, padded: bool, least_groups: int = 0
) -> list[list[int]]:
    """Divide rows into at least `least_groups` micro-batches, as lists of indices into `costs`, in order. Each costs
    at most `budget` tokens, or is a single row. If `padded`, a row costs as much as its micro-batch's first row."""
    groups: list[list[int]] = []
    room = 0
    for i, cost in enumerate(costs):
        if groups and padded:
            cost = costs[groups[-1][0]]
        if not groups or cost > room:
            groups.append([])
            cost = costs[i]
            room = budget
        groups[-1].append(i)
        room -= cost
    while len(groups) < least_groups:
        largest = max(groups, key=len)
        place = groups.index(largest)
        half = len(largest) // 2
        groups[place : place + 1] = [largest[:half], largest[half:]]
    return groups


def batches_by_length(
    tokens: Sequence[int], budget: int | None, device: torch.device
) -> list[list[int]]:
    """Divide rows into padded batches of at most `budget` tokens, by default as many as the device computes well at
    once. Return their indices, the longest rows first. `tokens`: of each row."""
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    costs = [tokens[i] for i in order]
    batches = list[list[int]]()
    for group in divide_rows(costs, budget or memory.scored_tokens(device.type), padded=True):
        batches.append([order[i] for i in group])
    return batches


def tokens_digest(pair: Pair, tokens: PairLogProbs, contract: Contract) -> str:
    """Return the hash of a pair, of its token ids and masks, and of the contract. With an equal digest, tokenising the
    pair again gives these tokens."""
    ids = [getattr(tokens, column) for column in TOKEN_COLUMNS]
    return content_id(contract.rendering_digest, vars(pair), ids)


@torch.no_grad()
def pair_log_probs(
    model: PreTrainedModel, pairs: Sequence[PairLogProbs], pad_id: int, precision: Precision
) -> list[tuple[list[float], list[float]]]:
    """Return log π(token | preceding tokens) in nats for every scored completion token, a list for chosen and one for
    rejected per pair.

    This is one forward of a model with a fused LM head. In fp32, other pairs change it by less than 1e-5 per token."""
    sequences = [(p.prompt_ids, p.chosen_ids, p.chosen_mask) for p in pairs]
    sequences += [(p.prompt_ids, p.rejected_ids, p.rejected_mask) for p in pairs]
    padded = pad_completions(sequences, pad_id)
    batch = send_batch(add_layout(model, padded), model.device)
    with autocast(precision, model.device):
        output = model(**batch, use_cache=False, fused_lm_head=True)
    scored = output.log_probs.float().cpu()  # (rows, length - 1): position t scores token t + 1
    marked = padded["labels"][:, 1:] != IGNORED
    log_probs = [row[marks].tolist() for row, marks in zip(scored, marked, strict=True)]
    return list(zip(log_probs[: len(pairs)], log_probs[len(pairs) :], strict=True))


def pad_completions(
    rows: Sequence[tuple[list[int], list[int], list[bool] | None]], pad_id: int
) -> dict[str, Tensor]:
    """Return prompts with completions as a batch on the CPU, (rows, tokens), padded on the right. `labels` are the
    tokens of completions, or those that a mask marks."""
    ids = list[Tensor]()
    ones = list[Tensor]()
    marks = list[Tensor]()
    for prompt, completion, mask in rows:
        ids.append(torch.tensor(prompt + completion))
        ones.append(torch.ones_like(ids[-1]))
        marks.append(torch.tensor([False] * len(prompt) + (mask or [True] * len(completion))))
    padded = pad_sequence(ids, True, pad_id)
    labels = padded.masked_fill(~pad_sequence(marks, True), IGNORED)
    return {"input_ids": padded, "attention_mask": pad_sequence(ones, True), "labels": labels}


@torch.no_grad()
def completion_scores(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]
) -> list[tuple[float, bool]]:
    """Return each completion's log-prob in nats, and whether the model finds each of its tokens the likeliest. `rows`:
    the token ids of a prompt and of its completion."""
    padded = pad_completions([(prompt, completion, None) for prompt, completion in rows], 0)
    del padded["attention_mask"]  # causal attention ignores the padding on the right
    output = model(**send_batch(padded, model.device), use_cache=False, fused_lm_head=True)
    sums = output.log_probs.float().sum(-1).tolist()
    hits = output.is_top1.sum(-1).tolist()
    lengths = [len(completion) for _, completion in rows]
    return [(total, hit == n) for total, hit, n in zip(sums, hits, lengths, strict=True)]


@torch.no_grad()
def completion_log_probs(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], precision: Precision
) -> list[list[float]]:
    """Return the log-prob in nats of each token of completions. `rows`: the token ids of a prompt and of its
    completion. The model has a fused LM head, and reads padded batches."""
    padded = pad_completions([(prompt, completion, None) for prompt, completion in rows], 0)
    del padded["attention_mask"]  # causal attention ignores the padding on the right
    with autocast(precision, model.device):
        output = model(**send_batch(padded, model.device), use_cache=False, fused_lm_head=True)
    scored = output.log_probs.float().cpu()
    marked = padded["labels"][:, 1:] != IGNORED
    return [row[marks].tolist() for row, marks in zip(scored, marked, strict=True)]
