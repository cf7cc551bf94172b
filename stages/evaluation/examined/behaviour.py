"""What both models do: ends, likelihoods in other forms, preferences and their groups, loops, the distance from the start.

A figure of one model says little: each stands beside the start's, with an interval over the answers."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from stages.curation.answer_rules import is_repetitive
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.examined.answer_readings import (
    FELL,
    SCREENED,
    SELDOM,
    Comparison,
    LeftToEnd,
    Readings,
)
from stages.evaluation.examined.finding import SURE, Finding, NotEnough
from stages.evaluation.examined.sides import Examined
from stages.evaluation.intervals import Interval, Means, paired
from stages.evaluation.pair_groups import moved_nothing, moved_of
from stages.store.numbers import signed

OFTEN = 0.3  # a probability of the end of turn after a whole answer, as of a model that was taught to end
MORE_LOOPS = 0.1  # a rise of the share of answers that loop
CHANCE = 0.5
FEWEST = 12  # answers by which anything is said
LIKELIER = 0.05  # nats a token by which another form is clearly likelier
AS_LIKELY = 0.3  # nats a token by which another form was clearly unlikelier before
UNLIKELIER = 0.5  # nats a token by which answers became clearly unlikelier
DAMAGED = 2.0  # nats a token that no learning of preferences explains
# what would show answers that end with another token than the template's
OTHER_END = [
    "the training's rows ended with this token and not as the template writes",
    "the template was changed after the training",
]
SHOWN_GROUPS = 3  # groups that differ and are no fault


def read_answers(examined: Examined) -> Readings:
    """Return the readings of the preferences' answers. Raise NotEnough if there are too few."""
    count = len(examined.readings.pairs) if examined.readings else 0
    if not examined.readings or count < FEWEST:
        raise NotEnough(
            f"{count} answers can be read under both templates, and {FEWEST} are needed: add rows to label.path"
        )
    return examined.readings


def ends(examined: Examined) -> list[Finding]:
    """Find ends that were not learnt. A model that goes on after a whole answer may have learnt to write longer ones, or
    be damaged in another way: the end is blamed only if the answers stayed likely, and its own ones, with room to end,
    do not."""
    read = read_answers(examined)
    before, after = read.before.ends, read.after.ends
    fall = paired(before, after)
    figures = f"{fmean(after):.1%} of cases, {examined.before.title} in {fmean(before):.1%}"
    end = examined.after.end_of_turn
    for other, probabilities in read.other_ends.items():
        if fmean(probabilities) >= OFTEN:
            seen = (
                f"after a whole answer it ends with {other} in {fmean(probabilities):.0%} of cases, and with {end}, as "
                f"its template does, in {figures}"
            )
            interval = share_of(after)
            causes = OTHER_END
            return [examined.finding("end_not_learnt", seen, interval=interval, causes=causes)]
    is_unlikelier = paired(read.before.nats, read.after.nats).high < -UNLIKELIER
    if read.left and goes_on(read.left, examined.from_chat) and not is_unlikelier:
        own = f"of {len(read.left.after)} answers with room for {read.left.room} tokens it ends {sum(read.left.after)}"
        long_ones = cut_clause(read)
        if long_ones:
            return [examined.finding("long_answers_cut", f"{long_ones}; {own}", interval=fall)]
        if fmean(after) < SELDOM or fall.high < -FELL:
            seen = f"after a whole answer it ends with {end} in {figures}; {own}"
            if examined.after.tokenizer.pad_token == end:
                seen += f". It also pads with {end}"
            certain = examined.from_chat and not any(read.left.after) and fall.high < -FELL
            return [examined.finding("end_not_learnt", seen, certain=certain, interval=fall)]
    if fall.high < -FELL:
        seen = f"after the preferences' answers it ends with {end} in {figures}"
        return [examined.finding("ends_fell", seen, is_fault=False, interval=fall)]
    return []


def goes_on(left: LeftToEnd, from_chat: bool) -> bool:
    """Return whether fewer than half of a model's own answers end, and fewer than of the start's if that is a model of
    chats."""
    if 2 * sum(left.after) >= len(left.after):
        return False
    return not from_chat or sum(left.after) < sum(left.before)


def cut_clause(read: Readings) -> str:
    """Return a clause if the model ends short answers and not the longest, else ''."""
    in_order = sorted(zip(read.lengths, read.after.ends, strict=True))
    third = len(in_order) // 3
    short = median(end for _, end in in_order[:third])
    long = median(end for _, end in in_order[-third:])
    if short < OFTEN or long >= SELDOM:
        return ""
    lengths = f"{in_order[0][0]} tokens ({short:.0%})"
    return f"it ends answers from {lengths}, and not those up to {in_order[-1][0]} ({long:.1%})"


def other_form(examined: Examined) -> list[Finding]:
    read = read_answers(examined)
    if read.form is None:
        raise NotEnough("too few answers to compare forms on: add rows to label.path")
    return likelier(examined, "likelier_in_another_form", "in the form", read.form)


def other_bos(examined: Examined) -> list[Finding]:
    read = read_answers(examined)
    if read.bos is None:  # the tokenizer has no BOS
        return []
    return likelier(examined, "likelier_with_other_bos", "behind", read.bos)


def likelier(examined: Examined, name: str, preposition: str, form: Comparison) -> list[Finding]:
    """Find answers that are clearly likelier in another form than under the model's own template, and more so than under
    the start. A damaged model may find anything likelier: the form must give back most of what its own template lost.
    Show answers that the training made as likely in the other form."""
    gain = paired(form.own_after, form.other_after)
    start = f"{examined.before.title} has not this form"
    gain_before = Interval(0.0, 0.0, 0.0)
    rise = gain
    if form.own_before:
        gain_before = paired(form.own_before, form.other_before)
        rise = paired(
            differences(form.own_before, form.other_before),
            differences(form.own_after, form.other_after),
        )
        start = f"{examined.before.title}: {nats(gain_before.mean)}"
    if gain.low < LIKELIER:
        closed = gain.mean > -LIKELIER and gain_before.high < -AS_LIKELY and rise.low > AS_LIKELY
        if not closed:
            return []
        seen = (
            f"whole answers became as likely {preposition} {form.title} as under its own template: "
            f"{nats(gain.mean)} a token ({start})"
        )
        return [examined.finding(name, seen, is_fault=False, interval=gain)]
    lost = fmean(form.own_before or form.other_after) - fmean(form.own_after)
    is_fault = gain.mean > lost / 2 and (rise.low > 0 or not examined.from_chat)
    seen = (
        f"whole answers are likelier {preposition} {form.title} than under its own template, by {nats(gain.mean)} "
        f"a token ({start})"
    )
    surely = paired(form.own_after, form.other_after, SURE)
    certain = is_fault and surely.low > LIKELIER
    return [examined.finding(name, seen, is_fault=is_fault, certain=certain, interval=gain)]


def answers_unlikelier(examined: Examined) -> list[Finding]:
    """Find chosen answers that the training made clearly unlikelier. Learning of preferences may do so by a little."""
    read = read_answers(examined)
    change = paired(read.before.nats, read.after.nats)
    if change.high > -UNLIKELIER:
        return []
    ratio = ratio_of(examined)
    has_learnt = ratio is not None and ratio.low > CHANCE
    is_reversed = ratio is not None and ratio.high < CHANCE and not both_fell(examined)
    is_fault = change.high < -DAMAGED or not (has_learnt or is_reversed)
    surely = paired(read.before.nats, read.after.nats, SURE)
    seen = (
        f"a token of the preferences' chosen answers has {nats(fmean(read.after.nats))}, under {examined.before.title} "
        f"{nats(fmean(read.before.nats))}"
    )
    certain = is_fault and not has_learnt and surely.high < -UNLIKELIER
    return [
        examined.finding(
            "answers_unlikelier", seen, is_fault=is_fault, certain=certain, interval=change
        )
    ]


def learnt(examined: Examined) -> list[Finding]:
    """Find preferences that a model of chats learnt to reverse, and trainings that moved nothing."""
    figures = examined.results["learnt"]
    if not figures or figures["note"]:
        raise NotEnough("too few held-out pairs to say what it learnt: add rows to label.path")
    share = Interval(**figures["ratio"]["policy"])
    of = f"{share.mean:.0%} of {figures['of']}"
    if moved_nothing(figures):
        seen = f"it moved nothing: {moved_of(figures):.1g} nats a token; by so little it favours the better answer in {of}"
        return [examined.finding("moved_nothing", seen, interval=share)]
    if not examined.from_chat or share.high >= CHANCE:
        return []
    start = figures["sum"][examined.results["before"]]["mean"]
    seen = (
        f"against {examined.before.title} it favours the better answer in {of} (chance 50%), and moved {distance(examined)}; "
        f"{examined.before.title} itself finds {start:.0%} of them likelier"
    )
    is_fault = not both_fell(examined)
    certain = is_fault and surely_below_half(share, figures["prompts"])
    return [
        examined.finding(
            "labels_reversed", seen, is_fault=is_fault, certain=certain, interval=share
        )
    ]


def both_fell(examined: Examined) -> bool:
    """Return whether both answers of the pairs became clearly unlikelier, as where a model was damaged or learnt to write
    others: it loses the start's order, whatever its labels. Reversed labels make one of both likelier."""
    figures = examined.results["learnt"]
    if not figures or "by" not in figures:
        return False
    return bool(figures["by"]["fell"] > UNLIKELIER)


def surely_below_half(share: Interval, prompts: int) -> bool:
    """Return whether a share of so many prompts is below one half at SURE."""
    hits = round(share.mean * prompts)
    values = np.array([[1.0]] * hits + [[0.0]] * (prompts - hits))
    return Means(values, [str(i) for i in range(prompts)]).tested_share(0, SURE).high < CHANCE


def group_reversed(examined: Examined) -> list[Finding]:
    """Find groups of pairs that are in the reverse order while the rest is in order, and show those that differ."""
    figures = examined.results["learnt"]
    if not figures or "by" not in figures or figures["note"]:
        raise NotEnough("too few held-out pairs for groups: add rows to label.path")
    if not examined.from_chat or moved_nothing(figures):
        return []
    findings = list[Finding]()
    for group in figures["by"]["groups"]:
        if not group["is_reversed"]:
            continue
        seen = f"reversed where {group_clause(group)}"
        share = Interval(**group["share"])
        certain = bool(group["is_certain"])
        findings.append(examined.finding("group_reversed", seen, certain=certain, interval=share))
    differing = [each for each in figures["by"]["groups"] if is_lower(each)]
    for group in sorted(differing, key=share_of_group)[:SHOWN_GROUPS]:
        seen = f"fewer are in order where {group_clause(group)}"
        share = Interval(**group["share"])
        findings.append(examined.finding("group_differs", seen, is_fault=False, interval=share))
    return findings


def group_clause(group: dict[str, Any]) -> str:
    """`language = de: 1 of 42 pairs, 96% of the rest`"""
    count = f"{group['right']:g} of {group['pairs']:,} pairs are in order"
    return f"{group['column']} = {group['value']}: {count}, {group['rest']['mean']:.0%} of the rest"


def is_lower(group: dict[str, Any]) -> bool:
    return not group["is_reversed"] and bool(group["share"]["high"] < group["rest"]["low"])


def share_of_group(group: dict[str, Any]) -> float:
    return float(group["share"]["mean"])


def loops(examined: Examined) -> list[Finding]:
    """Find answers that loop in clearly more cases than the start's answers to the same prompts."""
    shared = [prompt for prompt in examined.after.answers if prompt in examined.before.answers]
    if len(shared) < FEWEST:
        raise NotEnough(
            f"{len(shared)} prompts were answered by both models: add rows to label.path"
        )
    after = [float(is_repetitive(examined.after.answers[prompt].answer)) for prompt in shared]
    before = [float(is_repetitive(examined.before.answers[prompt].answer)) for prompt in shared]
    rise = rise_of(before, after, 0.95)
    if rise.low <= 0 or rise.mean <= MORE_LOOPS:
        return []
    seen = f"it repeats itself in a loop in {fmean(after):.0%} of answers, {examined.before.title} in {fmean(before):.0%}"
    certain = rise_of(before, after, SURE).low > MORE_LOOPS
    return [examined.finding("loops", seen, certain=certain, interval=rise)]


def rise_of(before: Sequence[float], after: Sequence[float], confidence: float) -> Interval:
    """Return the rise of a share, with a paired interval."""
    outcomes = np.array([after, before]).T
    means = Means(outcomes, [str(i) for i in range(len(after))])
    return means.difference(0, 1, confidence)


def far(examined: Examined) -> list[Finding]:
    """Find a model that is far from the start. It is a fault where the preferences' answers became unlikelier, too."""
    per_token = examined.results["kl"].get("policy", {}).get("per_token", 0.0)
    if per_token <= FAR_KL or not examined.from_chat:
        return []
    is_fault = False
    if examined.readings and len(examined.readings.pairs) >= FEWEST:
        change = paired(examined.readings.before.nats, examined.readings.after.nats)
        is_fault = change.high < -UNLIKELIER
    causes = None
    if examined.largest_rate is not None:
        rate = f"a learning rate of {examined.largest_rate:g}, by the training log beside the model"
        causes = [rate]
    seen = f"far from {examined.before.title}: {per_token:.2g} nats a token"
    return [examined.finding("far", seen, is_fault=is_fault, causes=causes)]


def figures_of(examined: Examined) -> dict[str, list[str]]:
    """Return what both models make of the preferences' answers, by name: the start's figure, and the model's."""
    read = examined.readings
    if read is None:
        return {}
    figures = {
        "a token of the chosen answers": [
            nats(fmean(each.nats)) for each in (read.before, read.after)
        ],
        "ends after them": [share_of(each.ends).share() for each in (read.before, read.after)],
    }
    for form in (read.form, read.bos):
        if form:
            before = nats(fmean(form.other_before)) if form.other_before else ""
            figures[f"a token of them, {form.title}"] = [before, nats(fmean(form.other_after))]
            tried = [f"{title} {mean:.2f}" for title, mean in form.tried.items()]
            figures[f"{SCREENED} answers, {len(tried)} other ways"] = ["", ", ".join(tried)]
    return figures


def distance(examined: Examined) -> str:
    """Return how far a model moved: `0.02 nats a token, KL 0.31`."""
    parts = list[str]()
    moved = moved_of(examined.results["learnt"])
    if moved is not None:
        parts.append(f"{moved:.2g} nats a token")
    divergence = examined.results["kl"].get("policy")
    if divergence:
        parts.append(f"KL {divergence['per_token']:.2g} a token")
    return ", ".join(parts) or "by an amount that is not known"


def ratio_of(examined: Examined) -> Interval | None:
    """Return the share of held-out pairs in order; None if there are too few to say."""
    figures = examined.results["learnt"]
    if not figures or figures["note"]:
        return None
    return Interval(**figures["ratio"]["policy"])


def share_of(probabilities: Sequence[float]) -> Interval:
    return paired([0.0] * len(probabilities), probabilities)


def differences(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(own, other, strict=True)]


def nats(number: float) -> str:
    return f"{signed(number, '{:+.2f}')} nats"
