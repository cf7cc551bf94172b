"""Stage `reference`: the log-prob of every completion token of the pairs under the reference model.

They are kept per token: `dpo` sums them as its loss needs, and a sweep over β, losses and lengths shares this node.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Reference
from stages.models.contract import load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.scoring import install_scoring, pair_log_probs, round_weights_once, tokenize_pairs
from stages.store.dropped import Dropped
from stages.store.numbers import signed
from stages.store.records import Pair, PairLogProbs, save, stream
from stages.store.shards import in_shards
from stages.store.workspace import StageDir
from stages.training.token_rows import PreferenceRows

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def run(cfg: Reference, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `logprobs.parquet`: token ids and log-probs of every pair that the contract can render.

    The ids are those that were drawn, where the policy drew them; else the text is tokenised, and counted.
    """
    contract, context = (
        load_contract(inputs["reference"] / "model"),
        read_context_length(inputs["reference"] / "model"),
    )
    rows, dropped = PreferenceRows(), Dropped(out, "pairs")
    retokenised = from_other_tokenizer = 0
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    for pair, token_ids, completion_ids, _ in tokenize_pairs(pairs, contract, context, dropped):
        rows.add(pair.id, {name: getattr(token_ids, name) for name in ID_COLUMNS})
        for stored_ids, usable_ids in zip(
            (pair.chosen_token_ids, pair.rejected_token_ids), completion_ids, strict=True
        ):
            retokenised += usable_ids is None
            from_other_tokenizer += usable_ids is None and stored_ids is not None
    refused = dropped.settle(len(rows), len(rows))
    if from_other_tokenizer:
        out.warn(
            f"{from_other_tokenizer} of {2 * len(rows)} completions come with token ids that are not of this model's tokenizer "
            "or not of their text: they are tokenised anew, which need not give what was sampled."
        )

    lengths = [prompt + max(sides) for prompt, *sides in zip(*map(rows.tokens, ID_COLUMNS), strict=True)]
    shortest_first = sorted(range(len(rows)), key=lengths.__getitem__)
    size = max(1, cfg.runtime.batch_size // 2)
    batches = [shortest_first[start : start + size] for start in range(0, len(shortest_first), size)]

    def score(waiting: Sequence[str]) -> Iterator[tuple[str, list[PairLogProbs]]]:
        if not waiting:
            return
        model = load_model(inputs["reference"] / "model", cfg.weights, resolve_device(cfg.runtime.device))
        install_scoring(model, cfg.forward)
        unscored_ids, columns = {*waiting}, rows.dataset
        # The same batches after a kill: a pair among others would round differently.
        unscored_batches = [batch for batch in batches if any(rows.ids[i] in unscored_ids for i in batch)]
        with round_weights_once(model.device):
            for batch in unscored_batches:
                batch_columns = columns[batch]
                tokens_of = zip(batch, *(batch_columns[name] for name in ID_COLUMNS), strict=True)
                pairs = [PairLogProbs(rows.ids[i], prompt, a, b, [], []) for i, prompt, a, b in tokens_of]
                scores = pair_log_probs(model, pairs, contract.tokenizer.pad_token_id, cfg.precision)
                for p, (chosen, rejected) in zip(pairs, scores, strict=True):
                    p.chosen_logps, p.rejected_logps = chosen, rejected
                    if p.id in unscored_ids:
                        yield p.id, [p]

    size = cfg.runtime.shard_size
    scored = in_shards(rows.ids, str, score, PairLogProbs, lambda p: p.id, size, "reference", out, rows=2)
    tokens, total = sum(rows.tokens("chosen_ids", "rejected_ids")), 0.0

    def add_up() -> Iterator[PairLogProbs]:
        nonlocal total
        for pair in scored:
            total += sum(pair.chosen_logps) + sum(pair.rejected_logps)
            yield pair

    save(out / "logprobs.parquet", add_up(), PairLogProbs)
    mean = total / tokens
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "pairs": len(scored),
        "refused": sum(refused.values()),
        "retokenised": retokenised,
        "tokens": tokens,
        "mean_logp": mean,
        "summary": f"{len(scored)} pairs, {tokens} completion tokens, {signed(mean, '{:z.3f}')} nats per token"
        + (f"; {retokenised} of {2 * len(scored)} completions tokenised from their text" if retokenised else ""),
    }
