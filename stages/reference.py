"""Stage `reference`: the log-prob of every completion token of the pairs under the reference model.

They are kept per token: `dpo` derives the sums that its loss needs, and a sweep over β, losses and lengths shares this
node.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Reference
from stages.models import contract
from stages.models.loading import device_of, load_model
from stages.models.pair_tokens import drawn, tokenized
from stages.models.rendering import ContractError
from stages.models.scoring import add_scoring, pair_log_probs, rounded_once
from stages.store.numbers import signed
from stages.store.records import Pair, PairLogProbs, load, save
from stages.store.shards import in_shards
from stages.store.work import Work
from stages.training.dropped import Dropped


def run(cfg: Reference, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `logprobs.parquet`: token ids and log-probs of every pair that the contract can render.

    The ids are those that were drawn, where the policy drew them; else the text is tokenised, and counted.
    """
    terms = contract.load(inputs["reference"] / "model")
    pairs: list[PairLogProbs] = []
    dropped = Dropped(out, "pairs")
    retokenised = foreign = 0
    for pair in load(inputs["pairs"] / "pairs.parquet", Pair):
        found = drawn(pair, terms)
        try:
            pairs.append(tokenized(pair, terms, found))
        except ContractError as reason:
            dropped.add(pair.id, reason)
            continue
        for given, used in zip((pair.chosen_token_ids, pair.rejected_token_ids), found, strict=True):
            retokenised += used is None
            foreign += used is None and given is not None
    refused = dropped.settle(len(pairs) + dropped.reasons.total(), len(pairs))
    if foreign:
        out.warn(
            f"{foreign} of {2 * len(pairs)} completions come with token ids that are not of this model's tokenizer "
            "or not of their text: they are tokenised anew, which need not give what was sampled."
        )

    ordered = sorted(pairs, key=lambda p: len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)))
    size = max(1, cfg.runtime.batch_size // 2)
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def score(waiting: Sequence[PairLogProbs]) -> Iterator[tuple[PairLogProbs, list[PairLogProbs]]]:
        if not waiting:
            return
        model = load_model(inputs["reference"] / "model", cfg.weights, device_of(cfg.runtime.device))
        add_scoring(model, cfg.forward)
        left = {p.id for p in waiting}
        # The same batches after a kill: a pair among others would round differently.
        again = [batch for batch in batches if any(p.id in left for p in batch)]
        with rounded_once(model.device):
            for batch in again:
                scores = pair_log_probs(model, batch, terms.tokenizer.pad_token_id, cfg.precision)
                for p, (chosen, rejected) in zip(batch, scores, strict=True):
                    p.chosen_logps, p.rejected_logps = chosen, rejected
                    if p.id in left:
                        yield p, [p]

    scored = in_shards(
        pairs,
        lambda p: p.id,
        score,
        PairLogProbs,
        lambda p: p.id,
        cfg.runtime.shard_size,
        "reference",
        out,
        rows=2,
    )
    save(out / "logprobs.parquet", scored, PairLogProbs)
    tokens = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in scored)
    mean = sum(sum(p.chosen_logps) + sum(p.rejected_logps) for p in scored) / tokens
    return {
        "device": str(device_of(cfg.runtime.device)),
        "pairs": len(scored),
        "refused": sum(refused.values()),
        "retokenised": retokenised,
        "tokens": tokens,
        "mean_logp": mean,
        "summary": f"{len(scored)} pairs, {tokens} completion tokens, {signed(mean, '{:z.3f}')} nats per token"
        + (f"; {retokenised} of {2 * len(scored)} completions tokenised from their text" if retokenised else ""),
    }
