"""Whether the policy still does what the models before it could: claims that it is not worse by more than a margin,
tested together (non-inferiority, one-sided; Holm 1979, Scandinavian Journal of Statistics 6:2).

A small probability p says that the data would hardly look so if the policy were worse by the margin or more. That
nothing got worse among few prompts proves little: among 64, a model that is worse on 2% of all prompts shows none of
it one time in four. So no p is below the probability of not having met what would make the claim false.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.curation.answer_rules import loops
from stages.evaluation.intervals import student_exceeding
from stages.evaluation.outcomes import Answers, Table
from stages.models.loading import context, device_of, load_model, load_tokenizer
from stages.models.scoring import autocast
from stages.store.records import Candidate, Example, stream
from stages.store.text_units import lower_words, words
from stages.store.workspace import Progress, StageDir

FIRST = 64  # words of an answer whose variety is measured
LONGEST = 512  # tokens of a text that are read, fewer where the model reads fewer
# Margins. Against SFT, and against the base: nats per token of running text; the others are against the base.
TEXT = {"sft": 0.05, "base": 0.10}
VARIETY = 0.9  # of the base's different pairs of words
LOOPS = 0.02  # share of answers
LENGTH_ERROR = 0.05  # share of the length that was asked for

POWER = 0.9  # with which a claim holds, if nothing got worse, at the number of prompts that is told

Array = NDArray[np.float64]
Pair = tuple[Array, Array]  # of the policy and of another model, (prompts,) each


@dataclass
class Claim:
    """That the policy's mean `what` is no worse than that of `against`, but for the margin: with what probability the
    data would look so if it were, and whether the claim holds among all that are tested. `needed`: the prompts (or
    texts) at which it would hold in 9 of 10 evaluations of a policy that lost nothing."""

    what: str
    against: str
    policy: float
    other: float
    margin: float
    p: float
    prompts: int
    needed: int | None
    holds: bool = False


def claims(cfg: Eval, inputs: dict[str, Path], everything: Table, answers: Answers, out: StageDir) -> dict[str, Any]:
    """What is claimed of running text (`eval.retention`), of open requests without constraints, and of requested
    lengths, as far as there are any; and a sentence of whether all of it holds. Nothing where there is nothing."""
    found, alpha = list[Claim](), 1 - cfg.confidence
    if "retained" in inputs:
        texts = [e.reference for e in stream(inputs["retained"] / "examples.parquet", Example) if e.reference]
        scored = {
            role: log_probs(cfg, inputs[role] / "model", texts)
            for role in ("base", "sft", "policy")
            if role in cfg.models
        }
        read = np.isfinite([*scored.values()]).all(axis=0)  # every model reads a token of it after another
        if not read.all():
            out.warn(f"eval.retention: {(~read).sum()} of {len(texts)} texts have fewer than two tokens: none counts.")
        if not read.any():
            raise UserError("eval.retention: none of its texts has two tokens.")
        scored = {role: found[read] for role, found in scored.items()}
        text = "log-prob of running text, nats per token"
        for against, margin in TEXT.items():
            if against not in scored:
                continue
            found.append(of_measure(text, against, (scored["policy"], scored[against]), alpha, margin))
    if (plain := everything.group("open_plain").prompts) and "base" in cfg.models:
        varied = of_answers(plain, answers, "base", variety)
        found.append(of_measure("different pairs of words", "base", varied, alpha, kept=VARIETY, bounded=True))
        loopfree = of_answers(plain, answers, "base", loopless)
        found.append(of_share("answers without a loop", "base", loopfree, alpha, LOOPS))
    sized = [e for e in everything.prompts if asked_length(e)]
    for against in (role for role in TEXT if sized and role in cfg.models):
        lengths, what = of_answers(sized, answers, against, within_length), "share of the asked length that is kept to"
        found.append(of_measure(what, against, lengths, alpha, LENGTH_ERROR, bounded=True))
    if not found:
        return {}
    corrected(found, alpha)
    return {"claims": [asdict(c) for c in found], "sentence": sentence(found, cfg.models)}


def of_share(what: str, against: str, pair: Pair, alpha: float, margin: float) -> Claim:
    """A claim about a share of answers: both 0 or 1 by prompt."""
    policy, other = pair
    needed = prompts_needed(float((policy != other).mean()), margin, alpha, fall=1.0)
    p = p_of_shares(policy, other, margin)
    return Claim(what, against, float(policy.mean()), float(other.mean()), margin, p, len(policy), needed)


def of_measure(
    what: str, against: str, pair: Pair, alpha: float, margin: float = 0.0, kept: float = 1.0, bounded: bool = False
) -> Claim:
    """A claim about a mean, higher is better.

    Args:
        kept: the part of what the other model has that the policy is held against.
        bounded: the measure is never below 0.
    """
    policy, before = pair
    other = kept * before
    above, fall = margin + float((before - other).mean()), float(other.max()) if bounded else 0.0
    needed = prompts_needed(float((policy - other).var()), above, alpha, fall)
    p = p_of_means(policy, other, margin, -fall if bounded else None)
    return Claim(what, against, float(policy.mean()), float(other.mean()), margin, p, len(policy), needed)


def p_of_shares(policy: Array, other: Array, margin: float) -> float:
    """The p of the claim that a share of prompts has fallen by less than `margin`. policy, other: (prompts,), 0 or 1.

    The score test of paired proportions (Tango 1998, Statistics in Medicine 17:8), and where prompts are few the exact
    binomial one, which a policy that can only lose would get.
    """
    n, gained, lost = len(policy), int((policy > other).sum()), int((policy < other).sum())
    a = 2 * n
    b = -gained - lost - (2 * n - gained + lost) * margin
    c = lost * margin * (1 + margin)
    losing = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # its probability, if worse by the margin
    error = math.sqrt(n * (2 * losing - margin * (1 + margin)))
    score = (gained - lost + n * margin) / error
    return max(1 - NormalDist().cdf(score), binomial(max(0, lost - gained), n, margin))


def p_of_means(policy: Array, other: Array, margin: float, lowest: float | None = None) -> float:
    """The p of the claim that a mean has fallen by less than `margin`, by Student's paired test. policy, other:
    (prompts,).

    lowest: the lowest that a difference can be, where there is one. Had so many prompts that outcome that the claim
    were false, it would be the probability of having met none of them.
    """
    difference = policy - other
    n, mean = len(difference), float(difference.mean())
    above = mean + margin
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    p = student_exceeding(above / error, n - 1) if error else float(above <= 0)
    if lowest is None or above <= 0:
        return p
    return max(p, (1 - above / (mean - lowest)) ** n)


def binomial(hits: int, n: int, probability: float) -> float:
    """The probability of so many hits or fewer among n."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(probability) + (n - k) * math.log1p(-probability)
        for k in range(hits + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def prompts_needed(variance: float, above: float, alpha: float, fall: float = 0.0) -> int | None:
    """How many prompts let a claim hold with probability POWER; None where none would.

    Args:
        variance: of the paired differences.
        above: how far their mean is above what the claim excludes.
        fall: by how much one outcome can get worse at most, where that is known; were the claim false by a few such
            outcomes, that would be the variance.
    """
    if above <= 0:
        return None
    quantile = NormalDist().inv_cdf
    return math.ceil(max(variance, above * (fall - above)) * ((quantile(1 - alpha) + quantile(POWER)) / above) ** 2)


def corrected(found: list[Claim], alpha: float) -> None:
    """Say of every claim whether it holds, so that all that hold are true with probability 1 - alpha (Holm)."""
    for tested, c in enumerate(sorted(found, key=lambda c: c.p)):
        if c.p > alpha / (len(found) - tested):
            return
        c.holds = True


def sentence(found: list[Claim], titles: dict[str, str]) -> str:
    """What a reader needs to know of the claims first."""
    not_shown = [f"{c.what} (against {titles[c.against]})" for c in found if not c.holds]
    if not not_shown:
        return f"{titles['policy']} keeps what was there before: all {len(found)} claims of retention hold."
    held = f"{len(found) - len(not_shown)} of {len(found)} claims of retention hold."
    return f"{held} Not shown to be kept by {titles['policy']}: {'; '.join(not_shown)}."


def of_answers(
    prompts: list[Example], answers: Answers, against: str, measured: Callable[[Example, Candidate], float]
) -> Pair:
    """What is measured of the policy's answers, and of another model's."""
    policy, other = (
        np.array([float(measured(e, answers[role][e.id])) for e in prompts]) for role in ("policy", against)
    )
    return policy, other


def variety(prompt: Example, answer: Candidate) -> float:
    """The share of pairs of neighbouring words that are different, among an answer's first words (distinct-2:
    arXiv:1510.03055); 0 where there are none."""
    pairs = list(pairwise(lower_words(answer.text)[:FIRST]))
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def loopless(prompt: Example, answer: Candidate) -> float:
    """1 for an answer that does not loop."""
    return float(not loops(answer.text))


def asked_length(prompt: Example) -> tuple[float, float]:
    """The fewest and the most words that a prompt allows; nothing where it names no number."""
    for check in prompt.checks:
        if check.kind == "words_at_most":
            return 0.0, check.params["count"]
        if check.kind == "words_at_least":
            return check.params["count"], np.inf
        if check.kind == "words_between":
            return check.params["low"], check.params["high"]
    return ()  # type: ignore[return-value]


def within_length(prompt: Example, answer: Candidate) -> float:
    """1 where an answer has the length that was asked for, less by what it is off, as a share of that; 0 at least."""
    low, high = asked_length(prompt)
    count = len(words(answer.text))
    off = (low - count) / low if count < low else (count - high) / high if count > high else 0.0
    return max(0.0, 1.0 - off)


@torch.no_grad()
def log_probs(cfg: Eval, folder: Path, texts: list[str]) -> NDArray[Any]:
    """The mean log-prob per token of every text under a model, without a template; nan for a text of one token."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, device=device_of(cfg.runtime.device))
    found, longest = [], min(LONGEST, context(model.config) or LONGEST)
    with Progress(len(texts), "running text", "text") as progress, autocast(cfg.precision, model.device):
        for text in texts:
            ids = torch.tensor([tokenizer(text).input_ids[:longest]], device=model.device)
            log_p = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            found.append(float(log_p.gather(-1, ids[0, 1:, None]).mean()))
            progress.update()
    return np.array(found)
