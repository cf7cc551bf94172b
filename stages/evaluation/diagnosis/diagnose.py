"""The diagnosis of a run: all findings, likeliest cause first, and one sentence.

The causes are DPO's inputs: the model it starts from, labels, pairs, settings and amounts, in pipeline order. Of two
findings equally far out of range the earlier one comes first, because it may have caused the later one."""

from collections import Counter
from dataclasses import dataclass
from math import sqrt

from stages.config.choices import SIMPO, Strategy
from stages.evaluation import claims
from stages.evaluation.claims import Word
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION, replace_main_loss
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding, Measure, Normal, write_number
from stages.evaluation.results import Results, Waiting
from stages.store.numbers import signed
from stages.store.text_units import transcript
from stages.store.truncation import MOST
from stages.tasks.checks import share_passed

ENOUGH = 8  # fewest pairs for a share that differs from chance
LOST = 5.0  # points that SFT cannot lose by chance or for a good reason
NEAR = 0.1  # a difference of scores smaller than one check of ten

# The normal range of learning rate × optimizer steps with all weights trained; an adapter takes ten times as much
# (Schulman et al., "LoRA Without Regret", 2025). The demo has 7e-4, and docs/explanation/tuning.md tried up to 3e-3.
# Published runs of 0.4 to 8 billion parameters have 2e-4 to 1e-3 (recipes zephyr_7b, smollm2_360m, tulu3_8b); with
# QLoRA 1e-2 (llama32_1b_qlora).
REACH = 1e-4, 6e-3
ADAPTERS = 10


def sft_gain(run: Evidence) -> Finding | None:
    """None if SFT was not trained here, or if the verdict is not by checks and so may concern other prompts."""
    if not run.sft_trained or "checks" not in run.results.gives_verdict or not run.results.primary:
        return None
    gain = run.results.primary["sft-base"]
    noise = 50 * (gain.high - gain.low)  # a fall within its interval may be chance
    return Finding.of(
        "sft_gain", 100 * gain.mean, normal=Normal(low=-noise, floor=-max(noise, LOST))
    )


def cut_off(run: Evidence) -> Finding | None:
    """None for completions from the user's file, whose finish reasons are unknown."""
    if not run.drawn:
        return None
    refused = run.pair_metrics["unfinished"]["refused as chosen"]
    share = sum(p.rejected_finish_reason == "length" for p in run.pairs) / len(run.pairs)
    return Finding.of(
        "cut_off",
        share,
        f"{refused} more would have been chosen, but were cut off" if refused else "",
    )


def longer(run: Evidence) -> Finding | None:
    if (
        len(
            unequal := [chosen > rejected for chosen, rejected in run.lengths if chosen != rejected]
        )
        < ENOUGH
    ):
        return None
    correlation = run.label_metrics.get("length_correlation")
    mean_difference = sum(chosen - rejected for chosen, rejected in run.lengths) / len(run.lengths)
    detail = f"by {signed(mean_difference, '{:+z.1f}')} tokens on average"
    if correlation is not None:
        detail += f"; score and length of candidates correlate by {signed(correlation, '{:+z.2f}')}"
    labels = "a labeler" if run.drawn else "preferences"
    losses = run.settings["loss_type"]  # SimPO takes a mean over tokens already
    loss = (
        ""
        if SIMPO in losses
        else f"; {replace_main_loss(losses, 'sigmoid_norm')} or dpo.trainer.ld_alpha=0.5"
    )
    return Finding.of("longer", sum(unequal) / len(unequal), detail, labels=labels, loss=loss)


def agreement(run: Evidence) -> Finding | None:
    """Agreement of labels with the prompts' checks: 100% if the checks are the labeler."""
    better = worse = 0
    for pair in run.pairs:
        if checks := run.prompts[pair.prompt_id].checks:
            chosen, rejected = (
                share_passed(checks, side[0]["content"]) for side in (pair.chosen, pair.rejected)
            )
            better, worse = better + (chosen > rejected), worse + (chosen < rejected)
    if (count := better + worse) < ENOUGH:
        return None
    return Finding.of(
        "agreement", better / count, f"of {count} pairs whose completions differ in their checks"
    )


def contradictory(run: Evidence) -> Finding:
    directed = {(p.prompt_id, transcript(p.chosen), transcript(p.rejected)) for p in run.pairs}
    contradicted = sum(
        (p.prompt_id, transcript(p.rejected), transcript(p.chosen)) in directed for p in run.pairs
    )
    labeler = "a labeler that repeats its own labels; " * run.drawn
    return Finding.of("contradictory", contradicted / len(run.pairs), labeler=labeler)


def repeated(run: Evidence) -> Finding:
    return Finding.of(
        "repeated",
        1 - len({p.id for p in run.pairs}) / len(run.pairs),
        more_prompts=run.more_prompts,
    )


def near_the_line(run: Evidence) -> Finding | None:
    if not (margins := [p.margin for p in run.pairs if p.margin is not None]):
        return None
    detail = f"mean margin {signed(sum(margins) / len(margins), '{:z.2f}')}"
    return Finding.of(
        "near_the_line", sum(margin <= NEAR for margin in margins) / len(margins), detail, near=NEAR
    )


def learning_rate(run: Evidence) -> Finding:
    steps, factor = run.steps, 1 if run.settings["adapter"] == "none" else ADAPTERS
    low, high = (factor * reach / steps for reach in REACH)
    rate = f"dpo.learning_rate={write_number('{:.0e}', sqrt(low * high))} for {steps} steps"
    detail = f"over {steps} steps of {run.settings['batch_size']} pairs"
    return Finding.of(
        "learning_rate", run.settings["learning_rate"], detail, Normal.times(low, high), rate=rate
    )


def beta(run: Evidence) -> Finding:
    if SIMPO in run.settings["loss_type"]:
        return Finding.of("simpo_beta", run.settings["beta"])
    # the loss takes a mean over tokens, not a sum
    per_token = "sigmoid_norm" in run.settings["loss_type"]
    normal, typical = (Normal.times(1.0, 10.0), 5) if per_token else (Normal.times(0.01, 0.5), 0.1)
    source = (
        "arXiv:2411.15124: 5"
        if per_token
        else "arXiv:2305.18290: 0.1 and 0.5; arXiv:2310.16944: 0.01 to 0.1"
    )
    return Finding.of("beta", run.settings["beta"], normal=normal, source=source, typical=typical)


def steps(run: Evidence) -> Finding:
    return Finding.of("steps", run.steps)


def trained_pairs(run: Evidence) -> Finding:
    advice = run.more_prompts
    if run.drawn:
        other = "pairs=random with " * (run.pairs[0].strategy == Strategy.best_worst)
        advice += f", more sample.candidates_per_prompt, {other}pairs.max_per_prompt=2"
    elif run.pairs[0].strategy != Strategy.all:
        advice += "; pairs=all with pairs.max_per_prompt=4"
    return Finding.of("trained_pairs", run.trained_pairs, advice=advice)


def without_pair(run: Evidence) -> Finding:
    reasons = Counter(run.pair_metrics["prompts_without_pair"])
    advice = "higher sample.temperatures, more sample.candidates_per_prompt, and the settings that the reasons name"
    if not run.drawn:
        advice = "the settings that the reasons name"
    elif run.pair_metrics.get("candidates_ended", 1.0) <= MOST:
        ended = f"{run.pair_metrics['candidates_ended']:.0%}"
        advice = f"lower sample.temperatures or a higher sample.max_new_tokens: only {ended} of the candidates end"
    detail = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return Finding.of(
        "without_pair", reasons.total() / max(1, run.pair_metrics["prompts"]), detail, advice=advice
    )


CAUSES: list[Measure] = [
    *(sft_gain, cut_off, longer, agreement, contradictory, repeated, near_the_line),
    *(learning_rate, beta, steps, trained_pairs, without_pair),
]


IN_RANGE = "nothing that was measured is out of its normal range"
# By the verdict's first part: the words for a good result, and what to add to detect a smaller change.
PARTS = {
    "checks": ("helped", "prompts of more tasks, or further seeds,"),
    "learnt": ("learnt the preferences", "more held-out pairs (pairs.validation_fraction)"),
    "judged": ("gives the better answers", "more judged prompts (eval.judged.prompts)"),
}


@dataclass(frozen=True)
class Diagnosis:
    """The findings `out_of_range`, likeliest cause first, and those `in_range`. `consequences`: findings out of range
    that the first one may have caused. `helped`: the verdict's first part is good, so nothing needs explaining."""

    helped: bool
    sentence: str
    out_of_range: list[Finding]
    consequences: list[Finding]
    in_range: list[Finding]


def diagnose(run: Evidence, title: str) -> Diagnosis:
    """Order the findings: far out of range first, then out of range, and causes before effects in pipeline order. The
    sample size of the evaluation comes last. `title`: the policy's title."""
    groups = (CAUSES, EFFECTS, EVALUATION)
    causes, effects, of_evaluation = (
        [f for measure in measures if (f := measure(run))] for measures in groups
    )
    findings = [*causes, *effects, *of_evaluation]
    out_of_range = sorted((f for f in findings if f.severity), key=lambda f: -f.severity)
    # an effect may suggest the opposite of its cause's advice
    explained = any(f.severity == FAR for f in causes)
    consequences = [f for f in out_of_range if explained and f in effects]
    part = run.results.gives_verdict[0]
    good, detectable = outcome_of(run.results, part)
    text = sentence(part, good, detectable, out_of_range, title)
    return Diagnosis(
        bool(good), text, out_of_range, consequences, [f for f in findings if not f.severity]
    )


def outcome_of(results: Results, part: str) -> tuple[bool | None, float | None]:
    """Return whether a part of the verdict is good (None: unknown), and the detectable points if nothing changed."""
    if part == "judged":
        comparison = next(iter(results.judged.values()))
        if isinstance(comparison, Waiting):
            return None, None
        claim = claims.judged(comparison)
        if claim.note or claim.word is Word.too_few:
            return None, None
        return claim.is_better, 100 * comparison.rates.detectable if claim.is_same else None
    if part == "learnt" and results.learnt:
        claim = claims.learnt(results.learnt)
        interval = results.learnt.claimed.ratio["policy"]
    elif results.primary:
        main = results.main_difference
        claim, interval = claims.change(results.primary, main), results.primary[main]
    else:
        return None, None
    if claim.note or claim.word is Word.perhaps:
        return None, None
    return claim.is_better, 50 * (interval.high - interval.low) if claim.is_same else None


def sentence(
    part: str, good: bool | None, detectable: float | None, out_of_range: list[Finding], title: str
) -> str:
    """Name the likeliest cause, or say that nothing stands out."""
    did_well, more = PARTS[part]
    if out_of_range and (cause := out_of_range[0].cause):
        first = out_of_range[0]
        lead = "The likeliest cause is" if good is False else "What stands out is"
        lead = f"{title} {did_well}. {lead}" if good else lead
        return f"{lead} that {cause.clause} ({first.quantity} {first.value_text}, normal is {first.range_text})."
    if good:
        return f"{title} {did_well}, and {IN_RANGE}."
    limit = f" A change below about {detectable or 0:.0f} points cannot be detected here; {more} would help."
    return f"{IN_RANGE.capitalize()}.{limit if detectable else ''}"
