"""Stage `reference`: the log-prob of every completion token of the pairs under the reference model.

They are kept per token: `dpo` sums them as its loss needs, and a sweep over β, losses and lengths shares this node.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Reference
from stages.models import contract
from stages.models.loading import context_of, device_of, load_model
from stages.models.scoring import add_scoring, pair_log_probs, readable, rounded_once
from stages.store.dropped import Dropped
from stages.store.numbers import signed
from stages.store.records import Pair, PairLogProbs, save, stream
from stages.store.shards import in_shards
from stages.store.workspace import StageDir
from stages.training.token_rows import PreferenceRows

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def run(cfg: Reference, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `logprobs.parquet`: token ids and log-probs of every pair that the contract can render.

    The ids are those that were drawn, where the policy drew them; else the text is tokenised, and counted.
    """
    terms, most = contract.load(inputs["reference"] / "model"), context_of(inputs["reference"] / "model")
    rows, dropped = PreferenceRows(), Dropped(out, "pairs")
    retokenised = foreign = 0
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    for pair, its, found, _ in readable(pairs, terms, most, dropped):
        rows.add(pair.id, {name: getattr(its, name) for name in IDS})
        for given, used in zip((pair.chosen_token_ids, pair.rejected_token_ids), found, strict=True):
            retokenised += used is None
            foreign += used is None and given is not None
    refused = dropped.settle(len(rows), len(rows))
    if foreign:
        out.warn(
            f"{foreign} of {2 * len(rows)} completions come with token ids that are not of this model's tokenizer "
            "or not of their text: they are tokenised anew, which need not give what was sampled."
        )

    lengths = [prompt + max(sides) for prompt, *sides in zip(*map(rows.tokens, IDS), strict=True)]
    ordered = sorted(range(len(rows)), key=lengths.__getitem__)
    size = max(1, cfg.runtime.batch_size // 2)
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def score(waiting: Sequence[str]) -> Iterator[tuple[str, list[PairLogProbs]]]:
        if not waiting:
            return
        model = load_model(inputs["reference"] / "model", cfg.weights, device_of(cfg.runtime.device))
        add_scoring(model, cfg.forward)
        left, columns = {*waiting}, rows.dataset
        # The same batches after a kill: a pair among others would round differently.
        again = [batch for batch in batches if any(rows.ids[i] in left for i in batch)]
        with rounded_once(model.device):
            for batch in again:
                read = columns[batch]
                tokens_of = zip(batch, *(read[name] for name in IDS), strict=True)
                pairs = [PairLogProbs(rows.ids[i], prompt, a, b, [], []) for i, prompt, a, b in tokens_of]
                scores = pair_log_probs(model, pairs, terms.tokenizer.pad_token_id, cfg.precision)
                for p, (chosen, rejected) in zip(pairs, scores, strict=True):
                    p.chosen_logps, p.rejected_logps = chosen, rejected
                    if p.id in left:
                        yield p.id, [p]

    size = cfg.runtime.shard_size
    scored = in_shards(rows.ids, str, score, PairLogProbs, lambda p: p.id, size, "reference", out, rows=2)
    tokens, total = sum(rows.tokens("chosen_ids", "rejected_ids")), 0.0

    def summed() -> Iterator[PairLogProbs]:
        nonlocal total
        for p in scored:
            total += sum(p.chosen_logps) + sum(p.rejected_logps)
            yield p

    save(out / "logprobs.parquet", summed(), PairLogProbs)
    mean = total / tokens
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
