"""Stage `reference`: compute log π_ref(token) of every completion token of the pairs, in nats.

They are stored per token: `dpo` sums them as its loss needs, and runs with other β, losses and lengths share them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Reference
from stages.models import scoring
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.store import safe_files
from stages.store.blocks import cut_blocks
from stages.store.dropped import Dropped
from stages.store.numbers import signed
from stages.store.records import PairLogProbs, save
from stages.store.shards import ShardedWork
from stages.store.single_completions import stream_pairs
from stages.store.workspace import StageDir
from stages.training.token_rows import PreferenceRows

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
COLUMNS = (*ID_COLUMNS, "chosen_mask", "rejected_mask")


def run(cfg: Reference, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `logprobs.parquet`: token ids and log-probs of every pair that the contract can render, or for KTO of
    every completion with its mismatched one. The metric `ordered` is the share of pairs whose chosen completion is the
    likelier one before training.

    Ids that the policy sampled are used; other texts are tokenised and counted."""
    model_folder = inputs["reference"] / "model"
    contract, context = load_contract(model_folder), read_context_length(model_folder)
    rows, dropped = PreferenceRows(), Dropped(out, "pairs")
    retokenised = from_other_tokenizer = 0
    for pair, token_ids in scoring.tokenize_pairs(stream_pairs(inputs), contract, context, dropped):
        rows.add(pair.id, {name: getattr(token_ids, name) for name in COLUMNS})
        if pair.parts_early and not (out / "rejected_example.json").exists():
            write_token_examples(token_ids, contract, out)
        for stored, usable in zip(
            (pair.chosen_token_ids, pair.rejected_token_ids),
            scoring.sampled_ids(pair, contract),
            strict=True,
        ):
            retokenised += usable is None
            from_other_tokenizer += usable is None and stored is not None
    refused = dropped.settle(len(rows), len(rows))
    if from_other_tokenizer:
        out.warn(
            f"{from_other_tokenizer} of {2 * len(rows)} completions have token ids of another tokenizer or text. "
            "They are tokenised from their text, which may give other tokens than were sampled."
        )

    lengths = [
        prompt + max(sides) for prompt, *sides in zip(*map(rows.tokens, ID_COLUMNS), strict=True)
    ]
    device = resolve_device(cfg.runtime.device)
    batches = scoring.batches_by_length(
        [2 * length for length in lengths], cfg.runtime.token_budget, device
    )

    def open_model() -> Any:
        return scoring.install_scoring(load_model(model_folder, cfg.weights, device), cfg.forward)

    def score(waiting: Sequence[str]) -> Iterator[tuple[str, list[PairLogProbs]]]:
        model = out.open_resource.get((model_folder, device), open_model)
        unscored_ids, columns = {*waiting}, rows.dataset
        # A resume uses the same batches, because a pair's rounding depends on the other pairs of its batch.
        unscored_batches = [
            batch for batch in batches if any(rows.ids[i] in unscored_ids for i in batch)
        ]
        with scoring.round_weights_once(model.device):
            for batch in unscored_batches:
                batch_columns = columns[batch]
                tokens_of = zip(batch, *(batch_columns[name] for name in COLUMNS), strict=True)
                pairs = [
                    PairLogProbs(rows.ids[i], p, a, b, [], [], *masks)
                    for i, p, a, b, *masks in tokens_of
                ]
                scores = scoring.pair_log_probs(
                    model, pairs, contract.tokenizer.pad_token_id, cfg.precision
                )
                for p, (chosen, rejected) in zip(pairs, scores, strict=True):
                    p.chosen_logps, p.rejected_logps = chosen, rejected
                    if p.id in unscored_ids:
                        yield p.id, [p]

    size, id_of = cfg.runtime.shard_size, lambda pair: pair.id
    blocks = cut_blocks(([rows.ids[i] for i in batch] for batch in batches), str, size)
    scored = ShardedWork(rows.ids, str, score, PairLogProbs, id_of, "reference", out).in_blocks(
        blocks
    )
    tokens, total, ordered = 0, 0.0, 0

    def add_up() -> Iterator[PairLogProbs]:
        nonlocal tokens, total, ordered
        for pair in scored:
            tokens += len(pair.chosen_logps) + len(pair.rejected_logps)
            chosen, rejected = sum(pair.chosen_logps), sum(pair.rejected_logps)
            total, ordered = total + chosen + rejected, ordered + (chosen > rejected)
            yield pair

    save(out / "logprobs.parquet", add_up(), PairLogProbs)
    mean = total / tokens
    noun = "pairs" if "pairs" in inputs else "completions, each with a mismatched one"
    return {
        "device": str(device),
        "pairs": len(scored),
        "refused": sum(refused.values()),
        "retokenised": retokenised,
        "tokens": tokens,
        "prompt_tokens": sum(rows.tokens("prompt_ids")),
        "mean_logp": mean,
        "ordered": ordered / len(scored),
        "summary": f"{len(scored)} {noun}, {tokens} completion tokens, {signed(mean, '{:z.3f}')} nats per token"
        + (
            f"; the chosen one is already likelier in {ordered / len(scored):.0%}"
            if noun == "pairs"
            else ""
        )
        + (
            f"; {retokenised} of {2 * len(scored)} completions tokenised from their text"
            if retokenised
            else ""
        ),
    }


def write_token_examples(pair: PairLogProbs, contract: Contract, out: StageDir) -> None:
    """Write both sides of a pair of several turns for the report: each token's text, and whether it is trained."""
    for side in ("chosen", "rejected"):
        ids, mask = (getattr(pair, f"{side}_{name}") for name in ("ids", "mask"))
        tokens = contract.describe_tokens(
            pair.prompt_ids + ids, [False] * len(pair.prompt_ids) + mask
        )
        safe_files.write(out / f"{side}_example.json", json.dumps(tokens, ensure_ascii=False))
