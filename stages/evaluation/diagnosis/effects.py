"""Findings on DPO's effects on the policy, and on the sample size of the evaluation.

No setting fixes an effect directly: effects show in which direction a run went wrong. Held-out pairs are the pairs
that `pairs.validation_fraction` keeps out of training."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from stages.evaluation import claims
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import TEXTS, Finding, Measure, Normal
from stages.evaluation.outcomes import ENOUGH_PAIRS, ENOUGH_PROMPTS
from stages.store.numbers import signed

ENOUGH_HELD_OUT = 20  # fewest held-out pairs for an accuracy that differs from chance
LEARNT = 0.6  # lowest accuracy on training pairs that counts as having learnt from them
# nats per token from the model before; the highest KL of a run that helped while tuning was 0.41
FAR_KL = 0.6
FELL = -0.3  # nats per token of chosen completions: each has lost a quarter of its probability
NATS = "{:+z.1f}"
TEST_PROMPTS = TEXTS["test_prompts"]["quantity"]


def replace_main_loss(losses: Sequence[str], other: str) -> str:
    """Return the setting that replaces the main loss of a mixture by `other`. The number of losses stays the same."""
    main = next((i for i, loss in enumerate(losses) if loss != "sft"), 0)
    return f"dpo.loss_type=[{','.join([*losses[:main], other, *losses[main + 1 :]])}]"


def accuracy(run: Evidence) -> Finding | None:
    accuracies, learnt = run.held_out("rewards/accuracies"), run.trained("rewards/accuracies")
    if (
        accuracies is None
        or learnt is None
        or learnt < LEARNT
        or run.dpo_metrics["held_out"] < ENOUGH_HELD_OUT
    ):
        return None
    detail = f"of {run.dpo_metrics['held_out']} pairs; {learnt:.0%} on training pairs"
    return Finding.of(
        "accuracy",
        accuracies[1],
        detail,
        loss=replace_main_loss(run.settings["loss_type"], "robust"),
    )


def overfit(run: Evidence) -> Finding | None:
    accuracies, learnt = run.held_out("rewards/accuracies"), run.trained("rewards/accuracies")
    if accuracies is None or learnt is None or run.dpo_metrics["held_out"] < ENOUGH_HELD_OUT:
        return None
    return Finding.of("overfit", 100 * (learnt - accuracies[1]))


def risen(run: Evidence) -> Finding | None:
    if not (losses := run.held_out("loss")):
        return None
    return Finding.of(
        "risen", losses[1] / losses[0], " → ".join(signed(loss, "{:z.3f}") for loss in losses)
    )


def reach(run: Evidence) -> Finding | None:
    if not (kl := run.results.kl.get("policy")):
        return None
    return Finding.of(
        "reach",
        kl.per_token,
        f"on {kl.answers} of its answers",
        Normal(0.01, FAR_KL, 0.001, 2.0),
    )


def margin(run: Evidence) -> Finding | None:
    margins = run.held_out("rewards/margins")
    return margins and Finding.of("margin", margins[1], "nats")


def displaced(run: Evidence) -> Finding | None:
    chosen, rejected = run.held_out("logps/chosen"), run.held_out("logps/rejected")
    if chosen is None or rejected is None or isnan(run.held_out_tokens):
        return None
    changes = [signed(after - before, NATS) for before, after in (chosen, rejected)]
    detail = f"nats; per completion {changes[0]}, of rejected {changes[1]}"
    return Finding.of(
        "displaced",
        (chosen[1] - chosen[0]) / run.held_out_tokens,
        detail,
        Normal(low=FELL, floor=-1),
    )


def ends(run: Evidence) -> Finding | None:
    if not (rates := run.results.behaviour.stop_rate):
        return None
    sampling = (
        "pairs.unfinished=drop, lower sample.temperatures, a higher sample.max_new_tokens, "
        * run.drawn
    )
    detail = f"{rates['sft']:.1%} → {rates['policy']:.1%}, on {run.results.shown_on}"
    return Finding.of("ends", 100 * (rates["policy"] - rates["sft"]), detail, sampling=sampling)


def length(run: Evidence) -> Finding | None:
    if not (tokens := run.results.behaviour.mean_tokens):
        return None
    detail = f"{tokens['sft']:.1f} → {tokens['policy']:.1f} tokens, on {run.results.shown_on}"
    return Finding.of("length", tokens["policy"] / max(1.0, tokens["sft"]), detail)


def test_prompts(run: Evidence) -> Finding | None:
    primary = run.results.primary
    if "checks" not in run.results.gives_verdict or not primary:
        return None
    delta = primary[run.results.main_difference]
    if not claims.difference(delta).is_same:  # there were enough prompts to detect the change
        return None
    detail = f"of {primary.tasks} tasks: ±{50 * (delta.high - delta.low):.1f} points"
    return Finding.of(
        "test_prompts", primary.prompts, detail, Normal(low=ENOUGH_PROMPTS, floor=100)
    )


def held_out_pairs(run: Evidence) -> Finding | None:
    learnt = run.results.learnt
    if "learnt" not in run.results.gives_verdict or not learnt:
        return None
    claimed = learnt.claimed
    ratio = claimed.ratio["policy"]
    claim = claims.learnt(learnt)
    if not claim.note and not claim.is_same:
        return None
    words = {"enough": ENOUGH_PAIRS, "more_prompts": run.more_prompts}
    detail = f"of {claimed.prompts} prompts: ±{50 * (ratio.high - ratio.low):.1f} points"
    normal = Normal(low=ENOUGH_PAIRS, floor=ENOUGH_HELD_OUT)
    return Finding.of("held_out_pairs", claimed.pairs, detail, normal, **words)


def displacement(figures: dict[str, float], held_out: list[dict[str, Any]]) -> str:
    """Return a warning of likelihood displacement (arXiv:2402.13228, arXiv:2410.08847), else '': log-probs of both
    chosen and rejected held-out completions fell by more than FELL per token against the reference model."""
    if not held_out or "eval_logps/chosen" not in figures:
        return ""
    before = [
        sum(row[f"ref_{side}_logps"] for row in held_out) / len(held_out)
        for side in ("chosen", "rejected")
    ]
    chosen = figures["eval_logps/chosen"] - before[0]
    rejected = figures["eval_logps/rejected"] - before[1]
    tokens = sum(
        len(row["chosen_ids"]) - (row["chosen_mask"] or []).count(False) for row in held_out
    ) / len(held_out)
    if max(chosen, rejected) > FELL * tokens:
        return ""
    fell = f"log-probs of chosen answers fell by {-chosen:.1f} nats, those of rejected answers by {-rejected:.1f}"
    way_out = "Try a higher dpo.beta, a lower dpo.learning_rate, or dpo.loss_type=[sigmoid,sft]."
    return f"likelihood displacement: on held-out pairs, {fell}. {way_out}"


EFFECTS: list[Measure] = [accuracy, overfit, risen, reach, margin, displaced, ends, length]
EVALUATION: list[Measure] = [test_prompts, held_out_pairs]
