"""Held-out pairs: how often the policy favours the chosen answer, more than the model did that its training started
from. It says what was learnt of these preferences, not that answers got better: that takes checks or judges."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.intervals import Interval, Means
from stages.evaluation.outcomes import ENOUGH_PAIRS, main_difference
from stages.evaluation.retention import LOOPS
from stages.models import contract
from stages.models.loading import context_of, device_of, load_model
from stages.models.scoring import add_scoring, pair_log_probs, readable, rounded_once
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs, stream
from stages.store.workspace import Progress, StageDir

PAIRS = 8  # in a forward, which reads both answers of each
TOO_FEW = "too few to say"

Array = NDArray[np.float64]


def learnt(cfg: Eval, inputs: dict[str, Path], before: str, out: StageDir) -> dict[str, Any]:
    """The shares of held-out pairs whose chosen answer a model favours: against `before` by log-ratio, where half
    would be chance, and by itself by summed log-prob and by log-prob per token; beside them the share in which it is
    the longer one. What is equal counts half. Pairs of one prompt are one draw.

    Only models that speak SFT's template can be scored: a base is asked otherwise, and so may another model be.
    """
    if before != "sft" or not (pairs := held_out(inputs, out)):
        return {}
    roles, main, prompts = [r for r in cfg.models if r != "base"], main_difference(cfg.models), [p for p, _ in pairs]
    sums = {role: log_probs(cfg, role, inputs[role] / "model", [ids for _, ids in pairs]) for role in roles}
    tokens = np.array([[len(ids.chosen_ids), len(ids.rejected_ids)] for _, ids in pairs], float)

    def shares(scores: dict[str, Array]) -> dict[str, Any]:
        means = Means(np.stack([favoured(score) for score in scores.values()], 1), prompts, drawn=True)
        row = {name: asdict(means.share(i, cfg.confidence)) for i, name in enumerate(scores)}
        if before in scores:
            row[main] = asdict(means.difference([*scores].index("policy"), 0, cfg.confidence))
        return row

    return {
        "pairs": len(pairs),
        "prompts": len({*prompts}),
        "ratio": shares({role: sums[role] - sums[before] for role in roles if role != before}),
        "sum": shares(sums),
        "per_token": shares({role: sums[role] / tokens for role in roles}),
        **shares({"longer": tokens}),
        "note": TOO_FEW if len(pairs) < ENOUGH_PAIRS else "",
    }


def held_out(inputs: dict[str, Path], out: StageDir) -> list[tuple[str, PairLogProbs]]:
    """The pairs that training has not seen, the shortest first, each with the id of its prompt. Left out, with a
    warning, are those that SFT's template cannot render or that its context does not hold."""
    terms, most = contract.load(inputs["sft"] / "model"), context_of(inputs["sft"] / "model")
    dropped = Dropped(out, "held-out pairs")
    held_out_pairs = (pair for pair in stream(inputs["pairs"] / "pairs.parquet", Pair) if pair.split == "validation")
    pairs = [(n, p.prompt_id, ids) for p, ids, _, n in readable(held_out_pairs, terms, most, dropped)]
    dropped.settle(len(pairs), left=1)  # where none is left, there is nothing to say, and no reason to stop
    return [(prompt, ids) for _, prompt, ids in sorted(pairs, key=lambda pair: pair[0])]


def log_probs(cfg: Eval, role: str, folder: Path, pairs: list[PairLogProbs]) -> Array:
    """The summed log-probs of chosen and rejected answers under a model: (pairs, 2). The batches are the same for
    every model, so that the same weights give the same numbers."""
    model = add_scoring(load_model(folder, device=device_of(cfg.runtime.device)))
    pad, sums = contract.load(folder).tokenizer.pad_token_id, list[tuple[float, float]]()
    with Progress(len(pairs), f"held-out pairs {role}", "pair") as progress, rounded_once(model.device):
        for batch in (pairs[start : start + PAIRS] for start in range(0, len(pairs), PAIRS)):
            sums += [(sum(a), sum(b)) for a, b in pair_log_probs(model, batch, pad, cfg.precision)]
            progress.update(len(batch))
    return np.array(sums)


def favoured(scores: Array) -> Array:
    """1 where the first of two numbers is the higher one, 0 where the second is, 0.5 where they are equal."""
    return (1 + np.sign(scores[:, 0] - scores[:, 1])) / 2


def sentence(figures: dict[str, Any], titles: dict[str, str], but: str = "") -> str:
    """Say in one plain sentence whether the policy learnt its preferences. `but`: what became worse, of `cautions`."""
    ratio, policy = Interval(**figures["ratio"]["policy"]), titles["policy"]
    word = "did not measurably learn the preferences"
    if ratio.low > 0.5 or ratio.high < 0.5:
        word = f"learnt {'the opposite of ' * (ratio.high < 0.5)}the preferences"
    begins = (
        f"{TOO_FEW.capitalize()} whether {policy} learnt the preferences" if figures["note"] else f"{policy} {word}"
    )
    share = f"{ratio.mean:.1%} ({ratio.low:.1%} to {ratio.high:.1%})"
    pairs = f"{figures['pairs']:,} held-out pairs (chance 50%)"
    return f"{begins}: it favours the chosen answer in {share} of {pairs}{but}."


def cautions(results: dict[str, Any]) -> str:
    """Name what became worse, as a clause for `sentence`: fewer answers that end, more that go round in a loop, and a
    policy that is far from the model before; '' where nothing did."""
    first, worse = results["before"], list[str]()
    if results["endings"]:
        worse.append(results["endings"].removeprefix(", and "))
    if (loops := results["loops"]) and loops["policy"] - loops[first] > LOOPS:
        worse.append(f"goes round in a loop in more of them: {loops[first]:.1%} → {loops['policy']:.1%}")
    if (far := results["kl"].get("policy", {}).get("per_token", 0.0)) > FAR_KL:
        worse.append(f"is far from {results['models'][first]}: {far:.2g} nats per token")
    return f"; but it {', and '.join(worse)}" if worse else ""
