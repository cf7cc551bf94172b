"""Faults that show in what the model does: labels reversed, ends not learnt or cut off, loops, far from its start."""

import math
from statistics import fmean, median

from stages.evaluation import claims
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.examined.sides import Examined
from stages.store.text_units import transcript

SELDOM = 0.1  # a probability of the end of turn after a whole answer, as of a model that was not taught to end
OFTEN = 0.3  # as of one that was
MORE_LOOPS = 0.1  # a rise of the share of answers that loop
FEWEST = 12  # pairs for ends by length


def labels_reversed(found: Examined) -> str:
    learnt = found.results.learnt
    if not found.from_chat or not learnt:
        return ""
    claim = claims.learnt(learnt)
    if not claim.is_worse:
        return ""
    return f"{claim.says('learnt', model='it')}: it gained more on the better answer in {claim.figure} of {claim.scope}"


def end_not_learnt(found: Examined) -> str:
    ends = [math.exp(each) for each in found.ends]
    if not ends or fmean(ends) >= SELDOM:
        return ""
    end, pad = found.after.end_of_turn, found.after.tokenizer.pad_token
    cause = f"; it also pads with {end}, which masks the end of every row" if pad == end else ""
    return f"after a whole answer it ends with {end} in {fmean(ends):.1%} of cases: the end of a turn was not trained{cause}"


def long_answers_cut(found: Examined) -> str:
    """The longest answers of a training that cuts rows never end, while the shorter ones do."""
    ends = [math.exp(each) for each in found.ends]
    if len(ends) < FEWEST:
        return ""
    lengths = [len(transcript(pair.chosen)) for pair in found.pairs[: len(ends)]]
    ordered = [end for _, end in sorted(zip(lengths, ends, strict=True))]
    third = len(ordered) // 3
    short, long = median(ordered[:third]), median(ordered[-third:])
    if short < OFTEN or long >= SELDOM:
        return ""
    return f"it ends short answers ({short:.0%}) and not long ones ({long:.0%}): the training cut the ends of long rows"


def loops(found: Examined) -> str:
    shares, before = found.results.behaviour.loops, found.results.before
    if not shares or shares["policy"] - shares[before] <= MORE_LOOPS:
        return ""
    return f"it repeats itself in a loop in {shares['policy']:.0%} of answers ({found.before.title}: {shares[before]:.0%})"


def far(found: Examined) -> str:
    distance = found.results.kl.get("policy")
    if distance is None or distance.per_token <= FAR_KL or not found.from_chat:
        return ""
    return f"it is {distance.per_token:.2g} nats per token from {found.before.title}: the learning rate was too high"
