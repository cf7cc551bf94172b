"""Held-out labels: the share in which the policy favours the better answer more than the model before training did.

It is a share of pairs or, for KTO, of comparisons of a desirable completion with an undesirable one. It measures what
was learnt of these preferences. Better answers are shown by checks or judges only."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.config.blocks.training import GRPO
from stages.config.choices import Precision
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.intervals import Interval, Means
from stages.evaluation.measures import FAVOURED, Measure
from stages.evaluation.outcomes import main_difference
from stages.evaluation.pair_groups import group_results, moved_nothing, moved_of, pair_margins
from stages.models import scoring
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.rendering import ContractError
from stages.store.dropped import Dropped
from stages.store.records import Pair, PairLogProbs, content_id
from stages.store.single_completions import MismatchedPair, stream_pairs
from stages.store.thoughts import answer_behind
from stages.store.workspace import Progress, StageDir

TOO_FEW = "too few to say"
FEWEST = 10  # pairs; with more, the interval alone decides
MORE_LOOPS = 0.02  # a rise of the share of answers that loop

Array = NDArray[np.float64]


def learnt_results(
    cfg: Eval, inputs: dict[str, Path], before: str, out: StageDir
) -> tuple[dict[str, Any], list[Measure]]:
    """Return the shares of held-out pairs whose chosen answer a model favours; an equal score counts half. A model
    favours the chosen answer by its log-ratio to `before` (chance: one half), by summed log-prob, or by log-prob per
    token. `longer` is the share in which the chosen answer, without its thought, is the longer one. In the intervals,
    pairs of one prompt are one draw. Only models with SFT's template are scored, so the result is empty without SFT.
    Without pairs, the rows are single completions, of which the desirable ones are compared with the undesirable ones.
    Also return what was measured of the policy, by its log-ratio."""
    # GRPO trains on all prompts, those of held-out pairs too.
    roles = [
        role
        for role, title in cfg.models.items()
        if role != "base" and title != GRPO.objective.title
    ]
    if before != "sft" or "policy" not in roles or not (pairs := read_held_out(inputs, out)):
        return {}, []
    pairs, rows = in_own_forms({role: inputs[role] / "model" for role in roles}, pairs)
    if not pairs:
        return {}, []
    labels = np.array([pair.label for pair, _ in pairs if isinstance(pair, MismatchedPair)])
    if len(labels) and labels.all() == labels.any():
        return {}, []
    main = main_difference(cfg.models)
    prompts = [pair.prompt_id for pair, _ in pairs]
    sums = {
        role: log_probs(cfg, role, inputs[role] / "model", of_role)
        for role, of_role in rows.items()
    }
    masked = np.array(
        [[(m or []).count(False) for m in (p.chosen_mask, p.rejected_mask)] for _, p in pairs]
    )
    tokens = np.array([[len(p.chosen_ids), len(p.rejected_ids)] for _, p in pairs], float) - masked

    def right(scores: Array) -> Array:
        if len(labels):
            return placements(scores[:, 0], labels)
        # 1 where chosen is higher, 0.5 where they are equal
        return (1 + np.sign(scores[:, 0] - scores[:, 1])) / 2

    def shares(scores: dict[str, Array]) -> dict[str, Any]:
        means = Means(np.stack([*map(right, scores.values())], 1), prompts, drawn=True)
        row = {name: asdict(means.tested_share(i, cfg.confidence)) for i, name in enumerate(scores)}
        names = [*scores]
        for name, other in ((main, before), ("policy-control", "control")):
            if {"policy", other} <= scores.keys():
                delta = means.difference(names.index("policy"), names.index(other), cfg.confidence)
                row[name] = asdict(delta)
        return row

    units = [content_id(pair.prompt_id, pair.chosen, pair.rejected) for pair, _ in pairs]
    values = right(sums["policy"] - sums[before]).tolist()
    measured = [Measure(FAVOURED, *row) for row in zip(units, prompts, values, strict=True)]
    noun = (
        "held-out completions, each desirable one with each other one"
        if len(labels)
        else "held-out pairs"
    )
    figures = {
        "pairs": len(pairs),
        "of": f"{len(pairs):,} {noun}",
        "prompts": len({*prompts}),
        "ratio": shares({role: sums[role] - sums[before] for role in roles if role != before}),
        "sum": shares(sums),
        "per_token": shares({role: sums[role] / tokens for role in roles}),
        **shares({"longer": answer_lengths(pairs, tokens, load_contract(inputs["sft"] / "model"))}),
        "note": TOO_FEW if len(pairs) < FEWEST else "",
    }
    if cfg.by is not None and not len(labels):
        margins = pair_margins(pairs, sums[before], sums["policy"], tokens)
        figures["by"] = group_results(cfg.by, inputs, pairs, margins, cfg.confidence)
    return figures, measured


def read_held_out(inputs: dict[str, Path], out: StageDir) -> list[tuple[Pair, PairLogProbs]]:
    """Read the pairs held out from training, or for KTO the completions, each beside its mismatched one. Those that
    SFT's template cannot render or that exceed SFT's context are left out, with a warning."""
    sft_contract = load_contract(inputs["sft"] / "model")
    longest = read_context_length(inputs["sft"] / "model")
    dropped = Dropped(out, "held-out pairs")
    held_out_pairs = (pair for pair in stream_pairs(inputs) if pair.split == "validation")
    pairs = [
        (p, ids)
        for p, ids in scoring.tokenize_pairs(held_out_pairs, sft_contract, longest, dropped)
    ]
    dropped.settle(len(pairs), remaining=1)  # no pair left means no result, not an error
    return pairs


def in_own_forms(
    folders: dict[str, Path], pairs: Sequence[tuple[Pair, PairLogProbs]]
) -> tuple[list[tuple[Pair, PairLogProbs]], dict[str, list[PairLogProbs]]]:
    """Return the pairs that every model's template can render, and by role each of them as that model reads it: one
    that was trained elsewhere has a template of its own."""
    own = load_contract(folders["sft"]).digest
    rows = dict[str, list[PairLogProbs | None]]()
    for role, folder in folders.items():
        contract = load_contract(folder)
        is_own = contract.digest == own
        rows[role] = [ids if is_own else in_form(pair, contract) for pair, ids in pairs]
    rendered = [all(of_pair) for of_pair in zip(*rows.values(), strict=True)]
    shared = {role: [*filter(None, compress(of_role, rendered))] for role, of_role in rows.items()}
    return [*compress(pairs, rendered)], shared


def in_form(pair: Pair, contract: Contract) -> PairLogProbs | None:
    with suppress(ContractError):
        return scoring.tokenize_pair(pair, contract)
    return None


def answer_lengths(
    pairs: Sequence[tuple[Pair, PairLogProbs]], tokens: Array, contract: Contract
) -> Array:
    """Return the lengths of chosen and rejected: (pairs, 2). Those with a thought have the `tokens` behind it."""
    lengths = tokens.copy()
    for i, (pair, _) in enumerate(pairs):
        for side, turns in enumerate((pair.chosen, pair.rejected)):
            answer = answer_behind(turns[-1]["content"])
            if len(turns) == 1 and answer != turns[-1]["content"]:
                lengths[i, side] = contract.length(answer, ended=True)
    return lengths


def log_probs(cfg: Eval, role: str, folder: Path, pairs: list[PairLogProbs]) -> Array:
    """Sum the log-probs of chosen and rejected under a model: (pairs, 2). All models get the same batches."""
    sums = np.zeros((len(pairs), 2))
    scored = token_log_probs(
        cfg.runtime.device, cfg.precision, f"held-out pairs {role}", folder, pairs
    )
    for i, chosen, rejected in scored:
        sums[i] = sum(chosen), sum(rejected)
    return sums


def token_log_probs(
    device: str, precision: Precision, title: str, folder: Path, pairs: list[PairLogProbs]
) -> Iterator[tuple[int, list[float], list[float]]]:
    """Yield each pair's place and the log-probs of its chosen and its rejected tokens under a model. `title`: of the
    progress."""
    model = scoring.install_scoring(load_model(folder, device=resolve_device(device)))
    pad = load_contract(folder).tokenizer.pad_token_id
    tokens = [2 * (len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids))) for p in pairs]
    with (
        Progress(len(pairs), title, "pair") as progress,
        scoring.round_weights_once(model.device),
    ):
        for batch in scoring.batches_by_length(tokens, None, model.device):
            scored = scoring.pair_log_probs(model, [pairs[i] for i in batch], pad, precision)
            for i, (chosen, rejected) in zip(batch, scored, strict=True):
                yield i, chosen, rejected
            progress.update(len(batch))


def placements(scores: Array, desirable: NDArray[np.bool_]) -> Array:
    """Return values whose mean is the share of comparisons that a desirable completion wins, and whose spread is that
    of the share (DeLong 1988, Biometrics 44:837): the share of the other kind that each completion beats, or that
    beats it, around the mean, in proportion to its kind's size."""
    wins = (1 + np.sign(scores[desirable][:, None] - scores[~desirable])) / 2
    values, share = np.empty(len(scores)), wins.mean()
    values[desirable] = share + (wins.mean(1) - share) * len(scores) / len(wins)
    values[~desirable] = share + (wins.mean(0) - share) * len(scores) / wins.shape[1]
    return values


def sentence(figures: dict[str, Any], titles: dict[str, str], but: str = "") -> str:
    """Say in one sentence whether the policy learnt its preferences. `but`: the clause from `cautions`."""
    ratio, policy = Interval(**figures["ratio"]["policy"]), titles["policy"]
    lead = f"{policy} did not measurably learn the preferences"
    if ratio.low > 0.5 or ratio.high < 0.5:
        lead = f"{policy} learnt {'the opposite of ' * (ratio.high < 0.5)}the preferences"
    if moved_nothing(figures):
        lead = f"{policy} moved nothing: {moved_of(figures):.1g} nats a token"
    if figures["note"]:
        lead = f"{TOO_FEW.capitalize()} whether {policy} learnt the preferences"
    return f"{lead}: it favours the better answer in {ratio.share()} of {figures['of']} (chance 50%){but}."


def cautions(results: dict[str, Any]) -> str:
    """Return a clause that names what became worse, else ''. It names fewer answers that end, more answers that loop,
    and a policy that moved far from the model before it."""
    first, worse = results["before"], list[str]()
    if results["endings"]:
        worse.append(results["endings"].removeprefix(", and "))
    if (loops := results["loops"]) and loops["policy"] - loops[first] > MORE_LOOPS:
        worse.append(
            f"repeats itself in a loop in more answers: {loops[first]:.1%} → {loops['policy']:.1%}"
        )
    if (far := results["kl"].get("policy", {}).get("per_token", 0.0)) > FAR_KL:
        worse.append(f"is far from {results['models'][first]}: {far:.2g} nats per token")
    return f"; but it {', and '.join(worse)}" if worse else ""
