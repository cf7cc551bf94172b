"""Retention: claims that the policy is not worse than the models before it by more than a margin.

They are one-sided tests of non-inferiority, corrected together (Holm 1979, Scandinavian Journal of Statistics 6:2). A
small p means that such data would be rare if the policy were worse by the margin or more. Few prompts prove little: a
model that is worse on 2% of all prompts shows no loss among 64 prompts one time in four. So p is never below the
probability that a sample contains no prompt with a loss."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation.claims import retention_sentence
from stages.evaluation.estimate import Means, correction, prompts_needed
from stages.evaluation.measures import LOOPLESS, Measure, rows_of
from stages.evaluation.outcomes import Answers, Table
from stages.evaluation.results import Retained, Retention
from stages.models.loading import context_length, load_model, load_tokenizer, resolve_device
from stages.models.run_attention import send_tensor
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example, content_id, stream
from stages.store.text_units import lower_words, words
from stages.store.workspace import Progress, StageDir

WORDS_READ = 64  # words at the beginning of an answer whose variety is measured
LONGEST = 512  # most tokens read of a text; a model with a shorter context reads fewer
TEXT_MEASURE = "log-prob of running text, nats per token"
DIFFERENT_PAIRS = "different pairs of words"
REQUESTED_LENGTH = "share of the requested length"
# margins in nats per token of running text, against SFT and against the base
TEXT = {"sft": 0.05, "base": 0.10}
VARIETY = 0.9  # share of the base's variety of word pairs that must remain
LOOPS = 0.05  # margin in the share of answers without a loop
LENGTH_ERROR = 0.05  # margin in the share of the requested length

Array = NDArray[np.float64]
Pair = tuple[Array, Array]  # a measure of the policy and of another model, (prompts,) each


def claims(
    cfg: Eval, inputs: dict[str, Path], everything: Table, answers: Answers, out: StageDir
) -> tuple[Retention | None, list[Measure]]:
    """Test the claims on running text (`eval.retention`), open requests without constraints, and requested lengths.
    Returns the claims that have data and a sentence about them (None if none has), and what they measured of each model."""
    tested, measured, alpha = list[Retained](), list[Measure](), 1 - cfg.confidence
    if "retained" in inputs:
        texts = [
            e.reference
            for e in stream(inputs["retained"] / "examples.parquet", Example)
            if e.reference
        ]
        roles = [role for role in ("base", "sft", "policy") if role in cfg.models]
        scored = {role: log_probs(cfg, inputs[role] / "model", texts) for role in roles}
        readable = np.isfinite([*scored.values()]).all(axis=0)
        if not readable.all():
            out.warn(
                f"eval.retention: left out {(~readable).sum()} of {len(texts)} texts, shorter than two tokens."
            )
        if not readable.any():
            raise UserError(
                "eval.retention: no text has two tokens or more. Name a file with longer texts."
            )
        for role, log_p in scored.items():
            values = zip(texts, log_p.tolist(), strict=True)
            measured += [
                Measure(TEXT_MEASURE, content_id(text), "texts", v, role)
                for text, v in values
                if math.isfinite(v)
            ]
        scored = {role: log_p[readable] for role, log_p in scored.items()}
        for against, margin in TEXT.items():
            if against in scored:
                tested.append(
                    mean_claim(
                        TEXT_MEASURE, against, (scored["policy"], scored[against]), alpha, margin
                    )
                )
    if (open_prompts := everything.group("open_plain").prompts) and "base" in cfg.models:
        varied = measure_answers(open_prompts, answers, variety)
        measured += rows_of_models(DIFFERENT_PAIRS, open_prompts, varied)
        pair = varied["policy"], varied["base"]
        tested.append(mean_claim(DIFFERENT_PAIRS, "base", pair, alpha, share=VARIETY, bounded=True))
        of_two = {role: answers[role] for role in ("policy", "base")}
        loopfree = measure_answers(open_prompts, of_two, has_no_loop)
        pair = loopfree["policy"], loopfree["base"]
        tested.append(share_claim(LOOPLESS, "base", pair, alpha, LOOPS))
    sized = [e for e in everything.prompts if asked_length(e)]
    if sized:
        lengths = measure_answers(sized, answers, within_length)
        measured += rows_of_models(REQUESTED_LENGTH, sized, lengths)
        for against in (role for role in TEXT if role in cfg.models):
            pair = lengths["policy"], lengths[against]
            tested.append(
                mean_claim(REQUESTED_LENGTH, against, pair, alpha, LENGTH_ERROR, bounded=True)
            )
    if not tested:
        return None, []
    mark_holding(tested, alpha)
    return Retention(tested, retention_sentence(tested, cfg.models)), measured


def share_claim(what: str, against: str, pair: Pair, alpha: float, margin: float) -> Retained:
    """Build a claim about a share of answers; both arrays of `pair` are 0 or 1 by prompt."""
    policy, other = pair
    needed = prompts_needed(float((policy != other).mean()), margin, alpha, fall=1.0)
    p = p_not_worse(policy, other, margin)
    return Retained(
        what, against, float(policy.mean()), float(other.mean()), margin, p, len(policy), needed
    )


def mean_claim(
    what: str,
    against: str,
    pair: Pair,
    alpha: float,
    margin: float = 0.0,
    share: float = 1.0,
    bounded: bool = False,
) -> Retained:
    """Build a claim about a mean for which higher is better.

    Args:
        share: the part of the other model's value that the policy must reach.
        bounded: True if the measure is never below 0."""
    policy, before = pair
    other = share * before
    above, fall = margin + float((before - other).mean()), float(other.max()) if bounded else 0.0
    needed = prompts_needed(float((policy - other).var()), above, alpha, fall)
    p = p_not_worse(policy, other, margin, -fall if bounded else None)
    return Retained(
        what, against, float(policy.mean()), float(other.mean()), margin, p, len(policy), needed
    )


def p_not_worse(policy: Array, other: Array, margin: float, lowest: float | None = -1.0) -> float:
    """Return the p-value of the claim that a mean over prompts has fallen by less than `margin`. `lowest`: the lowest
    possible difference of a prompt, None if there is none. policy, other: (prompts,)."""
    means = Means(np.stack([policy, other], 1), [""] * len(policy), shares=lowest is not None)
    return means.not_worse(0, 1, margin, lowest)


def mark_holding(tested_claims: list[Retained], alpha: float) -> None:
    """Set `holds` of every claim by Holm's method: all that hold are true with probability 1 - alpha."""
    levels = correction([c.p for c in tested_claims], alpha)
    for c, level in zip(tested_claims, levels, strict=True):
        c.holds = c.p <= level


def measure_answers(
    prompts: list[Example],
    answers: Answers,
    measure: Callable[[Example, Candidate], float],
) -> dict[str, Array]:
    """Return the values of a measure of every model's answers, (prompts,) each, by role."""
    return {
        role: np.array([float(measure(e, of_role[e.id])) for e in prompts])
        for role, of_role in answers.items()
    }


def rows_of_models(
    name: str, prompts: list[Example], values_by_role: dict[str, Array]
) -> list[Measure]:
    """Return the rows of one measure of every model's answers."""
    rows = list[Measure]()
    for role, values in values_by_role.items():
        rows += rows_of(name, prompts, values.tolist(), role)
    return rows


def has_no_loop(_: Example, answer: Candidate) -> float:
    return float(not is_repetitive(answer.answer))


def variety(prompt: Example, answer: Candidate) -> float:
    """The share of distinct pairs of neighbours among an answer's first words (distinct-2: arXiv:1510.03055)."""
    pairs = list(pairwise(lower_words(answer.answer)[:WORDS_READ]))
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def asked_length(prompt: Example) -> tuple[float, float]:
    """The fewest and the most words that a prompt allows; an empty tuple if its checks name no number."""
    for check in prompt.checks:
        if check.kind == "words_at_most":
            return 0.0, check.params["count"]
        if check.kind == "words_at_least":
            return check.params["count"], np.inf
        if check.kind == "words_between":
            return check.params["low"], check.params["high"]
    return ()  # type: ignore[return-value]


def within_length(prompt: Example, answer: Candidate) -> float:
    """Return 1 for an answer of the requested length, minus its relative deviation otherwise; at least 0."""
    low, high = asked_length(prompt)
    count = len(words(answer.answer))
    off = (low - count) / low if count < low else (count - high) / high if count > high else 0.0
    return max(0.0, 1.0 - off)


@torch.no_grad()
def log_probs(cfg: Eval, folder: Path, texts: list[str]) -> NDArray[Any]:
    """The mean log-prob per token of each text under a model, without a template; NaN for a text of one token."""
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, device=resolve_device(cfg.runtime.device))
    longest = min(LONGEST, context_length(model.config) or LONGEST)
    means = torch.zeros(len(texts), device=model.device)
    with (
        Progress(len(texts), "running text", "text") as progress,
        autocast(cfg.precision, model.device),
    ):
        for i, text in enumerate(texts):
            ids = send_tensor(torch.tensor([tokenizer(text).input_ids[:longest]]), model.device)
            log_p = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            means[i] = log_p.gather(-1, ids[0, 1:, None]).mean()
            progress.update()
    return np.array(means.tolist())
