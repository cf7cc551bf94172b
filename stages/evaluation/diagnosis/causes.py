"""Findings on DPO's inputs: the model it starts from, labels, pairs, settings and amounts, in pipeline order.

Of two findings equally far out of range the earlier one comes first, because it may have caused the later one. "The
demo" is this project's own runs of 22 November 2026 with three seeds in bf16 (docs/explanation/results.md, "The demo
over three seeds"), and the search for their settings (docs/explanation/tuning.md).
"""

from collections import Counter
from math import sqrt

from stages.config.choices import Strategy
from stages.config.unread_arguments import replace_main_loss
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import COUNT, NUMBER, SHARE, Cause, Finding, Measure, Normal, write_number
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
    return Finding(
        "SFT − base",
        100 * run.results["primary"]["sft-base"]["mean"],
        Normal(low=0, floor=-5),
        "{:z.1f} points",
        "the demo: 44 to 49",
        below=Cause(
            "SFT itself passes less than the base, and DPO starts from there",
            "a lower sft.learning_rate, fewer sft.epochs, other demonstrations, or sft=none",
        ),
    )


def cut_off(run: Evidence) -> Finding | None:
    """None for completions from the user's file, whose finish reasons are unknown."""
    if not run.drawn:
        return None
    refused = run.pair_metrics["unfinished"]["refused as chosen"]
    return Finding(
        "rejected completions that were cut off",
        sum(p.rejected_finish_reason == "length" for p in run.pairs) / len(run.pairs),
        Normal(high=0.1, ceiling=0.3),
        SHARE,
        "the demo: none",
        above=Cause(
            "many rejected completions were cut off, so that DPO learns to avoid truncation, not wrong content",
            "a higher sample.max_new_tokens; pairs.unfinished=drop",
        ),
        detail=f"{refused} more would have been chosen, but were cut off" if refused else "",
    )


def longer(run: Evidence) -> Finding | None:
    unequal = [chosen > rejected for chosen, rejected in run.lengths if chosen != rejected]
    if len(unequal) < ENOUGH:
        return None
    correlation = run.label_metrics.get("length_correlation")
    mean_difference = sum(chosen - rejected for chosen, rejected in run.lengths) / len(run.lengths)
    detail = f"by {signed(mean_difference, '{:+z.1f}')} tokens on average"
    if correlation is not None:
        detail += f"; score and length of candidates correlate by {signed(correlation, '{:+z.2f}')}"
    advice = f"pairs.max_length_ratio=1.2, or {'a labeler' if run.drawn else 'preferences'} that ignores length"
    return Finding(
        "chosen longer than rejected",
        sum(unequal) / len(unequal),
        Normal(0.25, 0.75, 0.1, 0.9),
        SHARE,
        "the demo: 38% to 45%; length bias: arXiv:2403.19159",
        below=Cause("the shorter completion is nearly always chosen, so that DPO learns to be brief", advice),
        above=Cause(
            "the longer completion is nearly always chosen, so that DPO learns length",
            f"{advice}; {replace_main_loss(run.settings['loss_type'], 'sigmoid_norm')} or dpo.trainer.ld_alpha=0.5",
        ),
        detail=detail,
    )


def agreement(run: Evidence) -> Finding | None:
    """Agreement of labels with the prompts' checks: 100% if the checks are the labeler."""
    better = worse = 0
    for pair in run.pairs:
        if checks := run.prompts[pair.prompt_id].checks:
            chosen, rejected = (share_passed(checks, side[0]["content"]) for side in (pair.chosen, pair.rejected))
            better, worse = better + (chosen > rejected), worse + (chosen < rejected)
    if better + worse < ENOUGH:
        return None
    return Finding(
        "labels that agree with the prompts' checks",
        better / (better + worse),
        Normal(low=0.8, floor=0.6),
        SHARE,
        "the demo: 100%; random labels: 50%",
        below=Cause(
            "the labels are noisy: chosen completions pass hardly more checks than rejected ones",
            "label=verifier or another labeler; read some of pairs.parquet",
        ),
        detail=f"of {better + worse} pairs whose completions differ in their checks",
    )


def contradictory(run: Evidence) -> Finding:
    advice = "a labeler that repeats its own labels; " if run.drawn else ""
    directed = {(p.prompt_id, p.chosen[0]["content"], p.rejected[0]["content"]) for p in run.pairs}
    contradicted = sum((p.prompt_id, p.rejected[0]["content"], p.chosen[0]["content"]) in directed for p in run.pairs)
    return Finding(
        "pairs that another one contradicts",
        contradicted / len(run.pairs),
        Normal(high=0.05, ceiling=0.25),
        SHARE,
        "the demo: none",
        above=Cause("pairs contradict one another", f"{advice}one source of preferences"),
    )


def repeated(run: Evidence) -> Finding:
    copies = Counter(p.id for p in run.pairs)
    return Finding(
        "pairs that repeat another one",
        1 - len(copies) / len(run.pairs),
        Normal(high=0.05, ceiling=0.25),
        SHARE,
        "the demo: none",
        above=Cause("pairs repeat one another", f"pairs.max_per_prompt=1; {run.more_prompts}"),
    )


def near_the_line(run: Evidence) -> Finding | None:
    margins = [p.margin for p in run.pairs if p.margin is not None]
    if not margins:
        return None
    return Finding(
        f"pairs whose scores differ by {NEAR:g} or less",
        sum(margin <= NEAR for margin in margins) / len(margins),
        Normal(high=0.25, ceiling=0.75),
        SHARE,
        "the demo: none, no margin below 0.33",
        above=Cause(
            "in most pairs the chosen completion scores hardly higher than the rejected one", "pairs.min_margin=0.25"
        ),
        detail=f"mean margin {signed(sum(margins) / len(margins), '{:z.2f}')}",
    )


def learning_rate(run: Evidence) -> Finding:
    steps, factor = run.dpo_metrics["steps"], 1 if run.settings["adapter"] == "none" else ADAPTERS
    low, high = (factor * reach / steps for reach in REACH)
    advice = f"dpo.learning_rate={write_number('{:.0e}', sqrt(low * high))} for {steps} steps"
    return Finding(
        "learning rate",
        run.settings["learning_rate"],
        Normal.times(low, high),
        NUMBER,
        "for this number of steps; rate × steps is 2e-4 to 3e-3 in the demo and in published runs from 0.4 to 8 "
        "billion parameters, ten times that for adapters; half and twice that are normal",
        below=Cause(
            "the learning rate is too low for this number of steps, so that the policy stays near the reference",
            f"{advice}; more pairs, more dpo.epochs",
        ),
        above=Cause(
            "the learning rate is too high, which drives the policy off the reference", f"{advice}; fewer dpo.epochs"
        ),
        detail=f"over {steps} steps of {run.settings['batch_size']} pairs",
    )


def beta(run: Evidence) -> Finding:
    per_token = "sigmoid_norm" in run.settings["loss_type"]  # the loss takes a mean over tokens, not a sum
    low, high = (1.0, 10.0) if per_token else (0.01, 0.5)
    source = "arXiv:2411.15124: 5" if per_token else "arXiv:2305.18290: 0.1 and 0.5; arXiv:2310.16944: 0.01 to 0.1"
    advice = f"dpo.beta={5 if per_token else 0.1}"
    return Finding(
        "beta",
        run.settings["beta"],
        Normal.times(low, high),
        NUMBER,
        source,
        below=Cause("beta is too low, and nothing holds the policy near the reference", advice),
        above=Cause(
            "beta is too high, which holds the policy at the reference and counts pairs as learnt too early", advice
        ),
    )


def steps(run: Evidence) -> Finding:
    return Finding(
        "optimizer steps",
        run.dpo_metrics["steps"],
        Normal(low=20, floor=8),
        COUNT,
        "the demo: 22 to 24",
        below=Cause("there are too few optimizer steps", "a smaller dpo.batch_size, more dpo.epochs or more pairs"),
    )


def trained_pairs(run: Evidence) -> Finding:
    advice = run.more_prompts
    if run.drawn:
        advice += ", more sample.candidates_per_prompt, pairs=random with pairs.max_per_prompt=2"
    elif run.pairs[0].strategy != Strategy.all:
        advice += "; pairs=all with pairs.max_per_prompt=4"
    return Finding(
        "pairs trained on",
        run.dpo_metrics["pairs"],
        Normal(low=300, floor=50),
        COUNT,
        "the demo: 354 to 388; 176 showed no change (docs/explanation/tuning.md)",
        below=Cause("there are too few pairs", advice),
    )


def without_pair(run: Evidence) -> Finding:
    reasons = Counter(run.pair_metrics["prompts_without_pair"])
    advice = "higher sample.temperatures, more sample.candidates_per_prompt, and the settings that the reasons name"
    if not run.drawn:
        advice = "the settings that the reasons name"
    elif run.pair_metrics.get("candidates_ended", 1.0) <= MOST:
        ended = f"{run.pair_metrics['candidates_ended']:.0%}"
        advice = f"lower sample.temperatures or a higher sample.max_new_tokens: only {ended} of the candidates end"
    return Finding(
        "prompts that gave no pair",
        reasons.total() / max(1, run.pair_metrics["prompts"]),
        Normal(high=0.75, ceiling=0.95),
        SHARE,
        "the demo: 64% to 67%",
        above=Cause("most prompts gave no pair, so that all pairs come from few prompts", advice),
        detail="; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)),
    )


CAUSES: list[Measure] = [
    *(sft_gain, cut_off, longer, agreement, contradictory, repeated, near_the_line),
    *(learning_rate, beta, steps, trained_pairs, without_pair),
]
