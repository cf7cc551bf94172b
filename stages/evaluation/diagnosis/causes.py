"""Findings on DPO's inputs: the model it starts from, labels, pairs, settings and amounts, in pipeline order.

Of two findings equally far out of range the earlier one comes first, because it may have caused the later one.
"""

from collections import Counter
from math import sqrt

from stages.config.choices import Strategy
from stages.config.unread_arguments import replace_main_loss
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import Finding, Measure, Normal, write_number
from stages.store.numbers import signed
from stages.store.truncation import MOST
from stages.tasks.checks import share_passed

ENOUGH = 8  # fewest pairs for a share that differs from chance
NEAR = 0.1  # a difference of scores smaller than one check of ten

# The normal range of learning rate × optimizer steps with all weights trained; an adapter takes ten times as much
# (Schulman et al., "LoRA Without Regret", 2025). The demo has 7e-4, and docs/explanation/tuning.md tried up to 3e-3.
# Published runs of 0.4 to 8 billion parameters have 2e-4 to 1e-3 (recipes zephyr_7b, smollm2_360m, tulu3_8b); with
# QLoRA 1e-2 (llama32_1b_qlora).
REACH = 1e-4, 6e-3
ADAPTERS = 10


def sft_gain(run: Evidence) -> Finding | None:
    """None if SFT was not trained here, or if the verdict is not by checks and so may concern other prompts."""
    if not run.sft_trained or "checks" not in run.results["gives_verdict"]:
        return None
    return Finding.of("sft_gain", 100 * run.results["primary"]["sft-base"]["mean"])


def cut_off(run: Evidence) -> Finding | None:
    """None for completions from the user's file, whose finish reasons are unknown."""
    if not run.drawn:
        return None
    refused = run.pair_metrics["unfinished"]["refused as chosen"]
    share = sum(p.rejected_finish_reason == "length" for p in run.pairs) / len(run.pairs)
    return Finding.of("cut_off", share, f"{refused} more would have been chosen, but were cut off" if refused else "")


def longer(run: Evidence) -> Finding | None:
    unequal = [chosen > rejected for chosen, rejected in run.lengths if chosen != rejected]
    if len(unequal) < ENOUGH:
        return None
    correlation = run.label_metrics.get("length_correlation")
    mean_difference = sum(chosen - rejected for chosen, rejected in run.lengths) / len(run.lengths)
    detail = f"by {signed(mean_difference, '{:+z.1f}')} tokens on average"
    if correlation is not None:
        detail += f"; score and length of candidates correlate by {signed(correlation, '{:+z.2f}')}"
    labels = "a labeler" if run.drawn else "preferences"
    loss = replace_main_loss(run.settings["loss_type"], "sigmoid_norm")
    return Finding.of("longer", sum(unequal) / len(unequal), detail, labels=labels, loss=loss)


def agreement(run: Evidence) -> Finding | None:
    """Agreement of labels with the prompts' checks: 100% if the checks are the labeler."""
    better = worse = 0
    for pair in run.pairs:
        if checks := run.prompts[pair.prompt_id].checks:
            chosen, rejected = (share_passed(checks, side[0]["content"]) for side in (pair.chosen, pair.rejected))
            better, worse = better + (chosen > rejected), worse + (chosen < rejected)
    if (differing := better + worse) < ENOUGH:
        return None
    return Finding.of(
        "agreement", better / differing, f"of {differing} pairs whose completions differ in their checks"
    )


def contradictory(run: Evidence) -> Finding:
    directed = {(p.prompt_id, p.chosen[0]["content"], p.rejected[0]["content"]) for p in run.pairs}
    contradicted = sum((p.prompt_id, p.rejected[0]["content"], p.chosen[0]["content"]) in directed for p in run.pairs)
    labeler = "a labeler that repeats its own labels; " * run.drawn
    return Finding.of("contradictory", contradicted / len(run.pairs), labeler=labeler)


def repeated(run: Evidence) -> Finding:
    copies = Counter(p.id for p in run.pairs)
    return Finding.of("repeated", 1 - len(copies) / len(run.pairs), more_prompts=run.more_prompts)


def near_the_line(run: Evidence) -> Finding | None:
    margins = [p.margin for p in run.pairs if p.margin is not None]
    if not margins:
        return None
    detail = f"mean margin {signed(sum(margins) / len(margins), '{:z.2f}')}"
    return Finding.of("near_the_line", sum(margin <= NEAR for margin in margins) / len(margins), detail, near=NEAR)


def learning_rate(run: Evidence) -> Finding:
    steps, factor = run.dpo_metrics["steps"], 1 if run.settings["adapter"] == "none" else ADAPTERS
    low, high = (factor * reach / steps for reach in REACH)
    rate = f"dpo.learning_rate={write_number('{:.0e}', sqrt(low * high))} for {steps} steps"
    detail = f"over {steps} steps of {run.settings['batch_size']} pairs"
    return Finding.of("learning_rate", run.settings["learning_rate"], detail, Normal.times(low, high), rate=rate)


def beta(run: Evidence) -> Finding:
    per_token = "sigmoid_norm" in run.settings["loss_type"]  # the loss takes a mean over tokens, not a sum
    normal, typical = (Normal.times(1.0, 10.0), 5) if per_token else (Normal.times(0.01, 0.5), 0.1)
    source = "arXiv:2411.15124: 5" if per_token else "arXiv:2305.18290: 0.1 and 0.5; arXiv:2310.16944: 0.01 to 0.1"
    return Finding.of("beta", run.settings["beta"], normal=normal, source=source, typical=typical)


def steps(run: Evidence) -> Finding:
    return Finding.of("steps", run.dpo_metrics["steps"])


def trained_pairs(run: Evidence) -> Finding:
    advice = run.more_prompts
    if run.drawn:
        advice += ", more sample.candidates_per_prompt, pairs=random with pairs.max_per_prompt=2"
    elif run.pairs[0].strategy != Strategy.all:
        advice += "; pairs=all with pairs.max_per_prompt=4"
    return Finding.of("trained_pairs", run.dpo_metrics["pairs"], advice=advice)


def without_pair(run: Evidence) -> Finding:
    reasons = Counter(run.pair_metrics["prompts_without_pair"])
    advice = "higher sample.temperatures, more sample.candidates_per_prompt, and the settings that the reasons name"
    if not run.drawn:
        advice = "the settings that the reasons name"
    elif run.pair_metrics.get("candidates_ended", 1.0) <= MOST:
        ended = f"{run.pair_metrics['candidates_ended']:.0%}"
        advice = f"lower sample.temperatures or a higher sample.max_new_tokens: only {ended} of the candidates end"
    detail = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    return Finding.of("without_pair", reasons.total() / max(1, run.pair_metrics["prompts"]), detail, advice=advice)


CAUSES: list[Measure] = [
    *(sft_gain, cut_off, longer, agreement, contradictory, repeated, near_the_line),
    *(learning_rate, beta, steps, trained_pairs, without_pair),
]
