"""Findings on DPO's effects on the policy, and on the sample size of the evaluation.

No setting fixes an effect directly: effects show in which direction a run went wrong. Held-out pairs are the pairs
that `pairs.validation_fraction` keeps out of training.
"""

from stages.config.unread_arguments import replace_main_loss
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import COUNT, NUMBER, SHARE, Cause, Finding, Measure, Normal
from stages.evaluation.displacement import FELL
from stages.evaluation.outcomes import ENOUGH_PAIRS, ENOUGH_PROMPTS
from stages.store.numbers import signed

ENOUGH_HELD_OUT = 20  # fewest held-out pairs for an accuracy that differs from chance
LEARNT = 0.6  # lowest accuracy on training pairs that counts as having learnt from them
FAR_KL = 0.6  # nats per token from the model before; the highest KL of a run that helped while tuning was 0.41
GENTLER = "a lower dpo.learning_rate, a higher dpo.beta, fewer dpo.epochs"
NATS = "{:+z.1f}"
TEST_PROMPTS = "test prompts"
BOLDER = "a higher dpo.learning_rate, more dpo.epochs, a lower dpo.beta"


def accuracy(run: Evidence) -> Finding | None:
    accuracies, learnt = run.held_out("rewards/accuracies"), run.trained("rewards/accuracies")
    if accuracies is None or learnt is None or learnt < LEARNT or run.dpo_metrics["held_out"] < ENOUGH_HELD_OUT:
        return None
    return Finding(
        "reward accuracy on held-out pairs",
        accuracies[1],
        Normal(low=0.6, floor=0.53),
        SHARE,
        "the demo: 68% to 77%",
        below=Cause(
            "what the policy learnt from its pairs does not hold for held-out pairs, as with random labels",
            "read some of pairs.parquet: would you choose the same? Fewer dpo.epochs, or "
            f"{replace_main_loss(run.settings['loss_type'], 'robust')} with dpo.trainer.label_smoothing=0.1",
        ),
        detail=f"of {run.dpo_metrics['held_out']} pairs; {learnt:.0%} on training pairs",
    )


def overfit(run: Evidence) -> Finding | None:
    accuracies, learnt = run.held_out("rewards/accuracies"), run.trained("rewards/accuracies")
    if accuracies is None or learnt is None or run.dpo_metrics["held_out"] < ENOUGH_HELD_OUT:
        return None
    return Finding(
        "reward accuracy, training − held out",
        100 * (learnt - accuracies[1]),
        Normal(high=25, ceiling=40),
        "{:+z.0f} points",
        "the demo: −9 to +4",
        above=Cause("the policy memorised the training pairs", f"more pairs; {GENTLER}"),
    )


def risen(run: Evidence) -> Finding | None:
    losses = run.held_out("loss")
    if losses is None:
        return None
    return Finding(
        "held-out loss, after over before",
        losses[1] / losses[0],
        Normal(high=1.05, ceiling=1.5),
        "{:.2f}",
        "the demo: 0.89 to 0.95",
        above=Cause("the held-out loss rose, so that training diverged or overfitted", GENTLER),
        detail=" → ".join(signed(loss, "{:z.3f}") for loss in losses),
    )


def reach(run: Evidence) -> Finding | None:
    if not (kl := run.results["kl"].get("policy")):
        return None
    return Finding(
        "KL from SFT, nats per token",
        kl["per_token"],
        Normal(0.01, FAR_KL, 0.001, 2.0),
        NUMBER,
        "the demo: 0.04 to 0.06; while tuning, 0.06 to 0.41 in runs that helped, 0.02 in one that did not",
        below=Cause("the policy stayed at the reference", BOLDER),
        above=Cause("the policy is far from the reference", GENTLER),
        detail=f"on {kl['answers']} of its answers",
    )


def margin(run: Evidence) -> Finding | None:
    margins = run.held_out("rewards/margins")
    if margins is None:
        return None
    return Finding(
        "reward margin on held-out pairs",
        margins[1],
        Normal(0.1, 4, 0.01, 10),
        NUMBER,
        "the demo: 0.10 to 0.14; sigmoid of it is the probability that chosen is better (arXiv:2305.18290)",
        below=Cause("margins are about 0, so that the policy does not distinguish chosen from rejected", BOLDER),
        above=Cause("margins are saturated, so that these pairs have nothing left to teach", GENTLER),
        detail="nats",
    )


def displaced(run: Evidence) -> Finding | None:
    chosen, rejected = run.held_out("logps/chosen"), run.held_out("logps/rejected")
    if chosen is None or rejected is None:
        return None
    return Finding(
        "log-prob of held-out chosen completions, change per token",
        (chosen[1] - chosen[0]) / run.held_out_tokens,
        Normal(low=FELL, floor=-1),
        "{:+z.2f}",
        "the demo: −0.01 to +0.03; likelihood displacement: arXiv:2402.13228, arXiv:2410.08847",
        below=Cause(
            "chosen completions became unlikely together with rejected ones",
            "a lower dpo.learning_rate; dpo.loss_type=[sigmoid,sft], or a larger share of sft in dpo.loss_weights",
        ),
        detail=f"nats; per completion {signed(chosen[1] - chosen[0], NATS)}, of rejected "
        f"{signed(rejected[1] - rejected[0], NATS)}",
    )


def ends(run: Evidence) -> Finding | None:
    if not (rates := run.results["stop_rate"]):
        return None
    sampling_advice = "pairs.unfinished=drop, lower sample.temperatures, a higher sample.max_new_tokens, "
    return Finding(
        "answers that end by themselves, policy − SFT",
        100 * (rates["policy"] - rates["sft"]),
        Normal(low=-3, floor=-15),
        "{:+z.1f} points",
        "the demo: 0 to +0.1",
        below=Cause(
            "the policy ends fewer of its answers",
            f"{sampling_advice * run.drawn}a lower dpo.learning_rate; for longer answers, more answer.max_new_tokens",
        ),
        detail=f"{rates['sft']:.1%} → {rates['policy']:.1%}, on {run.results['shown_on']}",
    )


def length(run: Evidence) -> Finding | None:
    if not (tokens := run.results["mean_tokens"]):
        return None
    advice = "pairs.max_length_ratio=1.2, so that pairs do not teach length; a lower dpo.learning_rate"
    return Finding(
        "length of answers, policy over SFT",
        tokens["policy"] / tokens["sft"],
        Normal(0.6, 1.5, 1 / 3, 3.0),
        NUMBER,
        "the demo: 0.96 to 1.00",
        below=Cause("answers became much shorter", advice),
        above=Cause("answers became much longer", advice),
        detail=f"{tokens['sft']:.1f} → {tokens['policy']:.1f} tokens, on {run.results['shown_on']}",
    )


def test_prompts(run: Evidence) -> Finding | None:
    if "checks" not in run.results["gives_verdict"]:
        return None
    primary = run.results["primary"]
    low, high = (primary[run.results["main_difference"]][bound] for bound in ("low", "high"))
    if low > 0 or high < 0:  # there were enough prompts to detect the change
        return None
    return Finding(
        TEST_PROMPTS,
        primary["prompts"],
        Normal(low=ENOUGH_PROMPTS, floor=100),
        COUNT,
        "the demo: 800, which gives ±3 to ±4 points",
        below=Cause(
            "there are too few test prompts to detect a change",
            "more data.tasks.test and data.tasks.unseen_phrasings, or more test rows in data.sources",
        ),
        detail=f"of {primary['tasks']} tasks: ±{50 * (high - low):.1f} points",
    )


def held_out_pairs(run: Evidence) -> Finding | None:
    if "learnt" not in run.results["gives_verdict"]:
        return None
    learnt, ratio = run.results["learnt"], run.results["learnt"]["ratio"]["policy"]
    if not learnt["note"] and not ratio["low"] <= 0.5 <= ratio["high"]:
        return None
    return Finding(
        "held-out pairs",
        learnt["pairs"],
        Normal(low=ENOUGH_PAIRS, floor=ENOUGH_HELD_OUT),
        COUNT,
        f"with {ENOUGH_PAIRS} pairs the share is known to about ±10 points",
        below=Cause(
            "there are too few held-out pairs to see what was learnt",
            f"a larger pairs.validation_fraction; {run.more_prompts}",
        ),
        detail=f"of {learnt['prompts']} prompts: ±{50 * (ratio['high'] - ratio['low']):.1f} points",
    )


EFFECTS: list[Measure] = [accuracy, overfit, risen, reach, margin, displaced, ends, length]
EVALUATION: list[Measure] = [test_prompts, held_out_pairs]
