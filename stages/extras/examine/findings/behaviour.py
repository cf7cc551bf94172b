"""What both models do: ends, likelihoods in other forms, preferences and their groups, loops, the distance from the start.

A figure of one model says little: each stands beside the start's, with an interval over the answers."""

import math
from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from stages.curation.answer_rules import is_repetitive
from stages.evaluation import claims
from stages.evaluation.claims import HALF, LEAST_MOVED, SURE
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.estimate import Means, difference, share
from stages.evaluation.intervals import Interval
from stages.evaluation.pair_groups import LENGTH_COLUMNS, LONGER
from stages.evaluation.results import Learnt, PairGroup
from stages.extras.examine.findings import weights
from stages.extras.examine.findings.answer_readings import (
    FELL,
    LIKELIER,
    SCREENED,
    SELDOM,
    Comparison,
    LeftToEnd,
    Readings,
)
from stages.extras.examine.findings.finding import TEXTS, Finding, NotEnough
from stages.extras.examine.findings.sides import Examined
from stages.store.numbers import signed

OFTEN = 0.3  # a probability of the end of turn after a whole answer, as of a model that was taught to end
MORE_LOOPS = 0.1  # a rise of the share of answers that loop
FEWEST = 12  # answers by which anything is said
AS_LIKELY = 0.3  # nats a token by which another form was clearly unlikelier before
UNLIKELIER = 0.5  # nats a token by which answers became clearly unlikelier
DAMAGED = 2.0  # nats a token that no learning of preferences explains
# what would show answers that end with another token than the template's
OTHER_END = [
    "the training's rows ended with this token and not as the template writes",
    "the template was changed after the training",
]
EXPECTED_BOS = 0.05  # a probability of BOS behind BOS that no training with one BOS teaches
MORE_BOS = 10  # times the start's
SHOWN_GROUPS = 3  # groups that differ and are no fault


def read_answers(examined: Examined) -> Readings:
    """Return the readings of the preferences' answers. Raise NotEnough if there are too few, or if they are not finite."""
    count = len(examined.readings.pairs) if examined.readings else 0
    if not examined.readings or count < FEWEST:
        raise NotEnough(
            f"{count} answers can be read under both templates, and {FEWEST} are needed: add rows to label.path"
        )
    require_finite_readings(examined, examined.readings)
    return examined.readings


def require_finite_readings(examined: Examined, read: Readings) -> None:
    """Raise NotEnough if a log-prob or a probability under either model is not a finite number."""
    of_before = [*read.before.nats, *read.before.ends]
    of_after = [*read.after.nats, *read.after.ends]
    for probabilities in read.instead.values():
        of_after += probabilities
    if read.second_bos is not None:
        of_before.append(read.second_bos[0])
        of_after.append(read.second_bos[1])
    for form in (read.form, read.bos):
        if form:
            of_before += [*form.own_before, *form.other_before]
            of_after += [*form.own_after, *form.other_after]
    for title, numbers in ((examined.before.title, of_before), (examined.after.title, of_after)):
        require_finite(f"log-probs of answers under {title}", numbers)


def require_finite(figures: str, numbers: Sequence[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise NotEnough(f"{figures} are not finite numbers: look for NaN in its weights")


def answers_scope(examined: Examined, read: Readings) -> str:
    """Return by how many answers something is said: `64 of 160 answers, drawn at random`."""
    count, total = len(read.pairs), len(examined.pairs)
    if count < total:
        return f"{count} of {total:,} answers, drawn at random"
    return f"{count} answers"


def ends(examined: Examined) -> list[Finding]:
    """Find ends that were not learnt. A model that goes on after a whole answer may have learnt to write longer ones, or
    be damaged in another way: the end is blamed only if the answers stayed likely, and its own ones, with room to end,
    do not."""
    read = read_answers(examined)
    before, after = read.before.ends, read.after.ends
    scope = answers_scope(examined, read)
    fall = difference(before, after)
    end = examined.after.end_of_turn
    figures = f"in {share_of(after).share()} of cases, {examined.before.title} in {share_of(before).share()}"
    for stop in examined.after.stops:
        probabilities = read.instead.get(stop)
        if probabilities and fmean(after) < SELDOM and fmean(probabilities) >= OFTEN:
            seen = (
                f"after a whole answer it ends with {stop} in {fmean(probabilities):.0%} of cases, and with {end}, as "
                f"its template does, {figures}"
            )
            interval = share_of(after)
            return [
                examined.finding("answers_go_on", seen, scope, interval=interval, causes=OTHER_END)
            ]
    change = difference(read.before.nats, read.after.nats)
    is_unlikelier = claims.is_below(change, -UNLIKELIER)
    if read.left and goes_on(read.left, examined.from_chat) and not is_unlikelier:
        own = f"of {len(read.left.after)} answers with room for {read.left.room} tokens it ends {sum(read.left.after)}"
        long_ones = cut_clause(read)
        if long_ones:
            seen = f"{long_ones}; {own}"
            return [examined.finding("long_answers_go_on", seen, scope, interval=fall)]
        has_fallen = claims.is_below(fall, -FELL)
        if fmean(after) < SELDOM or has_fallen:
            seen = f"after a whole answer it ends with {end} {figures}{instead_clause(read)}; {own}"
            if examined.after.tokenizer.pad_token == end:
                seen += f". It also pads with {end}"
            surely = difference(before, after, SURE)
            is_sure = claims.is_below(surely, -FELL) and not any(read.left.after)
            # a start that does not end answers either may be no model of chats, whatever its files say
            learnt_answers = claims.is_above(change, LIKELIER)
            return [
                examined.finding(
                    "answers_go_on",
                    seen,
                    scope,
                    is_fault=has_fallen or learnt_answers or not examined.from_chat,
                    certain=examined.from_chat and is_sure,
                    interval=fall,
                )
            ]
    if claims.is_below(fall, -FELL):
        seen = f"after the preferences' answers it ends with {end} {figures}{instead_clause(read)}"
        return [examined.finding("ends_fell", seen, scope, is_fault=False, interval=fall)]
    return []


def instead_clause(read: Readings) -> str:
    """Return a clause on the likeliest token in place of the end of turn; '' if none is likely."""
    means = {token: fmean(probabilities) for token, probabilities in read.instead.items()}
    if not means:
        return ""
    token = max(means, key=means.__getitem__)
    return (
        f", and in its place comes {token!r} in {means[token]:.0%}" if means[token] >= FELL else ""
    )


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
    """Find another form in which answers are likelier than under the model's own template, or towards which the training
    moved them while it left its template."""
    read = read_answers(examined)
    if read.form is None:
        raise NotEnough("too few answers to compare forms on: add rows to label.path")
    findings = likelier(examined, "likelier_in_another_form", "in the form", read.form)
    return findings or moved_to_form(examined, read.form)


def moved_to_form(examined: Examined, form: Comparison) -> list[Finding]:
    """Show answers that became clearly unlikelier under the model's own template and clearly likelier in another form. A
    sound training makes either both likelier or both unlikelier."""
    if not form.own_before:
        return []
    own, other = (
        difference(form.own_before, form.own_after),
        difference(form.other_before, form.other_after),
    )
    if not claims.is_below(own, -LIKELIER) or not claims.is_above(other, AS_LIKELY):
        return []
    seen = (
        f"whole answers became unlikelier under its own template, from {nats(fmean(form.own_before))} a token under "
        f"{examined.before.title} to {nats(fmean(form.own_after))}, and likelier in the form {form.title}, from "
        f"{nats(fmean(form.other_before))} to {nats(fmean(form.other_after))}"
    )
    scope = f"{len(form.own_after)} answers"
    return [examined.finding("moved_to_another_form", seen, scope, is_fault=False, interval=other)]


def other_bos(examined: Examined) -> list[Finding]:
    read = read_answers(examined)
    findings = expects_second_bos(examined, read)
    if read.bos:
        return findings + likelier(examined, "likelier_with_other_bos", "behind", read.bos)
    has_bos = examined.after.contract.tokenizer.bos_token_id is not None
    if has_bos and not findings:
        raise NotEnough("too few answers to compare numbers of BOS on: add rows to label.path")
    return findings


def expects_second_bos(examined: Examined, read: Readings) -> list[Finding]:
    """Find a model that expects BOS after BOS, and more so than its start. Only rows that begin with two teach that; a
    loss on answers alone does not. The probability is one figure, not a mean with an error."""
    if read.second_bos is None:
        return []
    before, after = read.second_bos
    if after < EXPECTED_BOS or after < MORE_BOS * before:
        return []
    seen = f"behind BOS it expects another BOS with a probability of {after:.0%}, {examined.before.title} {before:.2g}"
    is_fault = after >= HALF
    return [examined.finding("likelier_with_other_bos", seen, "one position", is_fault=is_fault)]


def likelier(examined: Examined, name: str, preposition: str, form: Comparison) -> list[Finding]:
    """Find answers that are clearly likelier in another form than under the model's own template, and more so than under
    the start. A damaged model may find anything likelier: the form must give back most of what its own template lost.
    Show answers that the training made as likely in the other form."""
    gain = difference(form.own_after, form.other_after)
    scope = f"{len(form.own_after)} answers"
    start = f"{examined.before.title} has not this form"
    gain_before = Interval(0.0, 0.0, 0.0)
    rise = gain
    if form.own_before:
        gain_before = difference(form.own_before, form.other_before)
        rise = difference(
            differences(form.own_before, form.other_before),
            differences(form.own_after, form.other_after),
        )
        start = f"{examined.before.title}: {nats(gain_before.mean)}"
    if not claims.is_above(gain, LIKELIER):
        was_unlikely = claims.is_below(gain_before, -AS_LIKELY)
        has_risen = claims.is_above(rise, AS_LIKELY)
        if gain.mean <= -LIKELIER or not was_unlikely or not has_risen:
            return []
        seen = (
            f"whole answers became as likely {preposition} {form.title} as under its own template: "
            f"{nats(gain.mean)} a token ({start})"
        )
        return [examined.finding(name, seen, scope, is_fault=False, interval=gain)]
    lost = fmean(form.own_before or form.other_after) - fmean(form.own_after)
    is_fault = gain.mean > lost / 2 and (claims.is_above(rise, LIKELIER) or not examined.from_chat)
    seen = (
        f"whole answers are likelier {preposition} {form.title} than under its own template, by {nats(gain.mean)} "
        f"a token ({start})"
    )
    surely = difference(form.own_after, form.other_after, SURE)
    certain = is_fault and claims.is_above(surely, LIKELIER)
    return [examined.finding(name, seen, scope, is_fault=is_fault, certain=certain, interval=gain)]


def answers_unlikelier(examined: Examined) -> list[Finding]:
    """Find chosen answers that the training made clearly unlikelier. Learning of preferences may do so by a little."""
    read = read_answers(examined)
    change = difference(read.before.nats, read.after.nats)
    if not claims.is_below(change, -UNLIKELIER):
        return []
    figures = examined.results.learnt
    has_learnt = figures is not None and claims.learnt(figures).is_better
    has_reversed = (
        figures is not None and claims.learnt(figures).is_worse and not both_fell(figures)
    )
    is_fault = claims.is_below(change, -DAMAGED) or not (has_learnt or has_reversed)
    surely = difference(read.before.nats, read.after.nats, SURE)
    seen = (
        f"a token of the preferences' chosen answers has {nats(fmean(read.after.nats))}, under {examined.before.title} "
        f"{nats(fmean(read.before.nats))}"
    )
    certain = is_fault and not has_learnt and claims.is_below(surely, -UNLIKELIER)
    return [
        examined.finding(
            "answers_unlikelier",
            seen,
            answers_scope(examined, read),
            is_fault=is_fault,
            certain=certain,
            interval=change,
            causes=merged_causes(examined, "answers_unlikelier"),
        )
    ]


def merged_causes(examined: Examined, finding_name: str) -> list[str] | None:
    """Return the causes of a finding with one more, if the model has the change of a merged adapter that is not there to
    be compared; else None. The weights alone do not tell by what factor it was merged."""
    rank = weights.merged_rank(examined)
    if not rank:
        return None
    merged = (
        f"an adapter was merged twice, or by another factor than alpha / r: the change has rank {rank}, as an "
        "adapter's, and no adapter is beside it. To tell: name the adapter as examine.model"
    )
    return [merged, *TEXTS["findings"][finding_name]["causes"]]


def learnt(examined: Examined) -> list[Finding]:
    """Find preferences that a model of chats learnt to reverse, and trainings that moved nothing."""
    figures = enough_pairs(examined, "to say what it learnt")
    in_order = figures.ratio["policy"]
    of = f"{in_order.mean:.0%} of {figures.of}"
    if moved_nothing(figures):
        moved = f"{figures.moved['policy']:.1g} nats a token"
        seen = f"it moved nothing: {moved}; by so little it favours the better answer in {of}"
        return [examined.finding("moved_nothing", seen, figures.of, interval=in_order)]
    if not examined.from_chat or not claims.is_below(in_order, HALF):
        return []
    start = figures.sum[examined.results.before].mean
    seen = (
        f"against {examined.before.title} it favours the better answer in {of} (chance 50%), and moved "
        f"{distance(examined, figures)}; {examined.before.title} itself finds {start:.0%} of them likelier"
    )
    by_length = length_groups(figures)
    went_by_length = any(claims.is_above(group.share, HALF) for group in by_length)
    if went_by_length:
        seen += f"; by length: {', '.join(map(group_clause, by_length))}"
    is_fault = not both_fell(figures) and not went_by_length
    certain = is_fault and surely_below_half(in_order, figures.prompts)
    return [
        examined.finding(
            "preferences_reversed",
            seen,
            figures.of,
            is_fault=is_fault,
            certain=certain,
            interval=in_order,
        )
    ]


def length_groups(figures: Learnt) -> list[PairGroup]:
    """Return the groups of pairs whose better answer is the longer one, and the shorter one. A model that learnt length has
    one of both in order, whatever its labels."""
    groups = figures.by.groups if figures.by else []
    return [group for group in groups if group.column == LONGER]


def enough_pairs(examined: Examined, purpose: str) -> Learnt:
    """Return the figures of held-out pairs. Raise NotEnough if there are too few, or if they are not finite."""
    figures = examined.results.learnt
    if figures is None or figures.note:
        raise NotEnough(f"too few held-out pairs {purpose}: add rows to label.path")
    share = figures.ratio["policy"]
    require_finite(
        f"figures of held-out pairs under {examined.after.title}",
        [figures.moved["policy"], share.low, share.mean, share.high],
    )
    return figures


def moved_nothing(figures: Learnt) -> bool:
    """Return whether the training moved the log-probs of held-out pairs by less than anybody would notice."""
    return figures.moved["policy"] < LEAST_MOVED


def both_fell(figures: Learnt) -> bool:
    """Return whether both answers of the pairs became clearly unlikelier, as where a model was damaged or learnt to write
    others: it loses the start's order, whatever its labels. Reversed labels make one of both likelier."""
    return figures.by is not None and figures.by.fell > UNLIKELIER


def surely_below_half(in_order: Interval, prompts: int) -> bool:
    """Return whether a share of so many prompts is below one half at SURE."""
    hits = round(in_order.mean * prompts)
    outcomes = [True] * hits + [False] * (prompts - hits)
    each_prompt = map(str, range(prompts))
    return claims.is_below(share(outcomes, each_prompt).interval(SURE), HALF)


def group_reversed(examined: Examined) -> list[Finding]:
    """Find groups of pairs that are in the reverse order while the rest is in order, and show those that differ."""
    figures = enough_pairs(examined, "for groups")
    if figures.by is None:
        raise NotEnough("no groups were compared: set eval.by=[]")
    if not figures.by.groups:
        raise NotEnough("nothing divides the held-out pairs: add rows or a column to label.path")
    if not examined.from_chat or moved_nothing(figures):
        return []
    findings = list[Finding]()
    went_by_length = any(
        claims.is_below(group.share, HALF) and claims.is_above(group.rest, HALF)
        for group in length_groups(figures)
    )
    for group in figures.by.groups:
        if group.is_reversed:
            # as a third by length is, if the model learnt length
            is_fault = not (went_by_length and group.column in LENGTH_COLUMNS)
            seen = f"reversed where {group_clause(group)}"
            finding = examined.finding(
                "group_reversed",
                seen,
                f"{group.pairs:,} pairs",
                is_fault=is_fault,
                certain=group.is_certain,
                interval=group.share,
            )
            findings.append(finding)
    differing = [group for group in figures.by.groups if is_lower(group)]
    for group in sorted(differing, key=mean_of_group)[:SHOWN_GROUPS]:
        seen = f"fewer are in order where {group_clause(group)}"
        findings.append(
            examined.finding(
                "group_differs",
                seen,
                f"{group.pairs:,} pairs",
                is_fault=False,
                interval=group.share,
            )
        )
    return findings


def group_clause(group: PairGroup) -> str:
    """`language = de: 1 of 42 pairs are in order, 96% of the rest`"""
    count = f"{group.right:g} of {group.pairs:,} pairs are in order"
    return f"{group.name}: {count}, {group.rest.mean:.0%} of the rest"


def is_lower(group: PairGroup) -> bool:
    return not group.is_reversed and claims.is_below(group.share, group.rest.low)


def mean_of_group(group: PairGroup) -> float:
    return group.share.mean


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
    if not claims.is_above(rise, 0.0) or rise.mean <= MORE_LOOPS:
        return []
    scope = f"{len(shared)} prompts"
    seen = f"it repeats itself in a loop in {fmean(after):.0%} of answers, {examined.before.title} in {fmean(before):.0%}"
    certain = claims.is_above(rise_of(before, after, SURE), MORE_LOOPS)
    return [examined.finding("loops", seen, scope, certain=certain, interval=rise)]


def rise_of(before: Sequence[float], after: Sequence[float], confidence: float) -> Interval:
    """Return the rise of a share, with a paired interval."""
    outcomes = np.array([after, before]).T
    means = Means(outcomes, [str(i) for i in range(len(after))])
    return means.difference(0, 1, confidence)


def far(examined: Examined) -> list[Finding]:
    """Find a model that is far from the start. It is a fault where the preferences' answers became unlikelier, too."""
    if not examined.from_chat:
        return []
    divergence = examined.results.kl.get("policy")
    if divergence is None:
        raise NotEnough("no answers of its own were read by both models: add rows to label.path")
    require_finite(f"distances of {examined.after.title}", [divergence.per_token])
    if divergence.per_token <= FAR_KL:
        return []
    is_fault = False
    if examined.readings and len(examined.readings.pairs) >= FEWEST:
        change = difference(examined.readings.before.nats, examined.readings.after.nats)
        is_fault = claims.is_below(change, -UNLIKELIER)
    causes = merged_causes(examined, "far")
    if examined.largest_rate is not None:
        rate = f"a learning rate of {examined.largest_rate:g}, by the training log beside the model"
        causes = [rate]
    seen = f"far from {examined.before.title}: {divergence.per_token:.2g} nats a token"
    scope = "its own answers"
    return [examined.finding("far", seen, scope, is_fault=is_fault, causes=causes)]


def figures_of(examined: Examined) -> dict[str, list[str]]:
    """Return what both models make of the preferences' answers, by name: the start's figure, and the model's."""
    read = examined.readings
    if read is None:
        return {}
    figures = {
        "chosen answers that were read": ["", answers_scope(examined, read)],
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
            title = f"{SCREENED} answers, {len(tried)} of {form.ways} other ways"
            figures[title] = ["", ", ".join(tried)]
    return figures


def distance(examined: Examined, figures: Learnt) -> str:
    """Return how far a model moved: `0.02 nats a token, KL 0.31 a token`."""
    moved = f"{figures.moved['policy']:.2g} nats a token"
    divergence = examined.results.kl.get("policy")
    return f"{moved}, KL {divergence.per_token:.2g} a token" if divergence else moved


def share_of(probabilities: Sequence[float]) -> Interval:
    return difference([0.0] * len(probabilities), probabilities)


def differences(own: Sequence[float], other: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(own, other, strict=True)]


def nats(number: float) -> str:
    return f"{signed(number, '{:+.2f}')} nats"
