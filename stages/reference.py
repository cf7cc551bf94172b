"""Stage `reference`: compute log π_ref(token) of every completion token of the pairs, in nats.

They are stored per token: `dpo` sums them as its loss needs, and runs with other β, losses and lengths share them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
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
    contract = load_contract(model_folder)
    context = read_context_length(model_folder)
    rows = PreferenceRows()
    dropped = Dropped(out, "pairs")
    retokenised = 0
    from_other_tokenizer = 0
    for pair, token_ids in scoring.tokenize_pairs(stream_pairs(inputs), contract, context, dropped):
        rows.add(pair.id, {name: getattr(token_ids, name) for name in COLUMNS})
        if pair.parts_early and not (out / "rejected_example.json").exists():
            write_token_examples(token_ids, contract, out)
        stored = (pair.chosen_token_ids, pair.rejected_token_ids)
        usable = scoring.sampled_ids(pair, contract)
        for stored_ids, usable_ids in zip(stored, usable, strict=True):
            if usable_ids is None:
                retokenised += 1
                from_other_tokenizer += stored_ids is not None
    refused = dropped.settle(len(rows), len(rows))
    if from_other_tokenizer:
        out.warn(
            f"{from_other_tokenizer} of {2 * len(rows)} completions have token ids of another tokenizer or text. "
            "They are tokenised from their text, which may give other tokens than were sampled."
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

    def ids_of(batch: Sequence[int]) -> list[str]:
        return [rows.ids[i] for i in batch]

    def score(waiting: Sequence[str]) -> Iterator[tuple[str, list[PairLogProbs]]]:
        model = out.open_resource.get((model_folder, device), open_model)
        waiting_ids = {*waiting}
        columns = rows.dataset
        with scoring.round_weights_once(model.device):
            for batch in batches:
                # A resume uses the same batches, because a pair's rounding depends on the other pairs of its batch.
                if waiting_ids.isdisjoint(ids_of(batch)):
                    continue
                pairs = [
                    PairLogProbs(row, prompt, chosen, rejected, [], [], *masks)
                    for row, prompt, chosen, rejected, *masks in zip(
                        ids_of(batch), *map(columns[batch].get, COLUMNS), strict=True
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
    blocks = cut_blocks(map(ids_of, batches), str, cfg.runtime.shard_size)
    work = ShardedWork(rows.ids, str, score, PairLogProbs, id_of, "reference", out)
    sums = Sums()
    save(out / "logprobs.parquet", sums.count(work.in_blocks(blocks)), PairLogProbs)
    ordered = sums.ordered / sums.pairs
    mean = sums.logps / sums.tokens
    clauses = [
        f"{sums.pairs} completions, each with a mismatched one",
        f"{sums.tokens} completion tokens",
        f"{signed(mean, '{:z.3f}')} nats per token",
    ]
    if "pairs" in inputs:
        clauses[0] = f"{sums.pairs} pairs"
        clauses[-1] += f"; the chosen one is already likelier in {ordered:.0%}"
    if retokenised:
        clauses[-1] += f"; {retokenised} of {2 * sums.pairs} completions tokenised from their text"
    return {
        "device": str(device),
        "pairs": sums.pairs,
        "refused": sum(refused.values()),
        "retokenised": retokenised,
        "tokens": sums.tokens,
        "prompt_tokens": sum(rows.tokens("prompt_ids")),
        "mean_logp": mean,
        "ordered": ordered,
        "summary": ", ".join(clauses),
    }


@dataclass
class Sums:
    """Sums over scored pairs. `ordered` counts those whose chosen completion is the likelier one."""

    pairs: int = 0
    tokens: int = 0
    logps: float = 0.0
    ordered: int = 0

    def count(self, pairs: Iterable[PairLogProbs]) -> Iterator[PairLogProbs]:
        """Yield the pairs, and count them."""
        for pair in pairs:
            chosen = sum(pair.chosen_logps)
            rejected = sum(pair.rejected_logps)
            self.pairs += 1
            self.tokens += len(pair.chosen_logps) + len(pair.rejected_logps)
            self.logps += chosen
            self.logps += rejected
            self.ordered += chosen > rejected
            yield pair


def write_token_examples(pair: PairLogProbs, contract: Contract, out: StageDir) -> None:
    """Write both sides of a pair of several turns for the report: each token's text, and whether it is trained."""
    for side in ("chosen", "rejected"):
        ids = pair.prompt_ids + getattr(pair, f"{side}_ids")
        mask = [False] * len(pair.prompt_ids) + getattr(pair, f"{side}_mask")
        tokens = contract.describe_tokens(ids, mask)
        safe_files.write(out / f"{side}_example.json", json.dumps(tokens, ensure_ascii=False))
