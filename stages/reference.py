"""Stage `reference`: compute log π_ref(token) of every completion token of the pairs, in nats.

They are stored per token: `dpo` sums them as its loss needs, and runs with other β, losses and lengths share them."""

from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Reference
from stages.models import scoring
from stages.models.contract import load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.store.blocks import cut_blocks
from stages.store.dropped import Dropped
from stages.store.numbers import signed
from stages.store.records import PairLogProbs, save, stream
from stages.store.shards import ShardedWork
from stages.store.single_completions import stream_pairs
from stages.store.workspace import StageDir
from stages.training.token_rows import PreferenceRows

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
COLUMNS = (*scoring.TOKEN_COLUMNS, "digest")


def run(cfg: Reference, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `logprobs.parquet`: token ids and log-probs of every pair that the contract can render, or of every labelled
    completion with its mismatched one, and the digest of pair and tokens. The metric `ordered` is the share of pairs whose
    chosen completion is the likelier one before training.

    Ids that the policy sampled are used; other texts are tokenised and counted."""
    model_folder = inputs["reference"] / "model"
    contract = load_contract(model_folder)
    context = read_context_length(model_folder)
    rows = PreferenceRows()
    dropped = Dropped(out, "pairs")
    retokenised = 0
    from_other_tokenizer = 0
    for pair, token_ids in scoring.tokenize_pairs(stream_pairs(inputs), contract, context, dropped):
        token_ids.digest = scoring.tokens_digest(pair, token_ids, contract)
        rows.add(pair.id, {name: getattr(token_ids, name) for name in COLUMNS})
        stored_sides = (pair.chosen_token_ids, pair.rejected_token_ids)
        sampled = scoring.sampled_ids(pair, contract)
        for stored_ids, sampled_ids in zip(stored_sides, sampled, strict=True):
            if sampled_ids is None:
                retokenised += 1
                from_other_tokenizer += stored_ids is not None
    refused = dropped.settle(len(rows), len(rows))
    if from_other_tokenizer:
        out.warn(
            f"{from_other_tokenizer} of {2 * len(rows)} completions have token ids of another tokenizer or text, and are "
            "tokenised from their text."
        )

    device = resolve_device(cfg.runtime.device)
    # a row counts as two sequences of its longer side
    lengths = [
        2 * (prompt + max(chosen, rejected))
        for prompt, chosen, rejected in zip(*map(rows.tokens, ID_COLUMNS), strict=True)
    ]
    batches = scoring.batches_by_length(lengths, cfg.runtime.token_budget, device)

    def open_model() -> Any:
        return scoring.install_scoring(load_model(model_folder, cfg.weights, device), cfg.forward)

    def pair_ids(batch: Sequence[int]) -> list[str]:
        return [rows.ids[i] for i in batch]

    def score(waiting: Sequence[str]) -> Iterator[tuple[str, list[PairLogProbs]]]:
        model = out.open_resource.get((model_folder, device), open_model)
        waiting_ids = {*waiting}
        columns = rows.dataset
        with scoring.round_weights_once(model.device):
            for batch in batches:
                # A resume uses the same batches, because a pair's rounding depends on the other pairs of its batch.
                if waiting_ids.isdisjoint(pair_ids(batch)):
                    continue
                pairs = [
                    PairLogProbs(row, prompt, chosen, rejected, [], [], *masks_and_digest)
                    for row, prompt, chosen, rejected, *masks_and_digest in zip(
                        pair_ids(batch), *map(columns[batch].get, COLUMNS), strict=True
                    )
                ]
                scores = scoring.pair_log_probs(
                    model, pairs, contract.tokenizer.pad_token_id, cfg.precision
                )
                for pair, (chosen_logps, rejected_logps) in zip(pairs, scores, strict=True):
                    if pair.id in waiting_ids:
                        pair.chosen_logps = chosen_logps
                        pair.rejected_logps = rejected_logps
                        yield pair.id, [pair]

    id_of = attrgetter("id")
    blocks = cut_blocks(map(pair_ids, batches), str, cfg.runtime.shard_size)
    work = ShardedWork(rows.ids, str, score, PairLogProbs, id_of, "reference", out)
    file = out / "logprobs.parquet"
    save(file, work.in_blocks(blocks), PairLogProbs)
    tokens = 0
    sum_of_logps = 0.0
    likelier_chosen = 0
    for scored in stream(file, PairLogProbs):
        chosen = sum(scored.chosen_logps)
        rejected = sum(scored.rejected_logps)
        tokens += len(scored.chosen_logps) + len(scored.rejected_logps)
        sum_of_logps += chosen
        sum_of_logps += rejected
        likelier_chosen += chosen > rejected
    mean = sum_of_logps / tokens
    return {
        "device": str(device),
        "pairs": len(rows),
        "refused": sum(refused.values()),
        "retokenised": retokenised,
        "tokens": tokens,
        "prompt_tokens": sum(rows.tokens("prompt_ids")),
        "mean_logp": mean,
        "ordered": likelier_chosen / len(rows),
        "summary": f"{len(rows)} pairs, {tokens} completion tokens, {signed(mean, '{:z.3f}')} nats per token",
    }
