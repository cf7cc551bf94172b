"""Judged completions one by one, each desirable or undesirable: what KTO learns from (arXiv:2402.01306).

A score says it by a threshold. Of preferences a completion has as many wins as losses, more, or fewer (Copeland, as in
`contrasts.py`): more is desirable, fewer undesirable. What nobody can say is left out, with the reason.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from stages.config.blocks.pairs import Unpaired
from stages.config.choices import Unfinished
from stages.store.records import Candidate, Judgement, content_id
from stages.store.truncation import ending_advice

UNJUDGED = "no judgement"
TIED = "as many preferences for it as against it"
COPY = "the text of another one"
UNFINISHED_GOOD = "desirable and unfinished"
UNFINISHED_BAD = "undesirable and unfinished"
# What would give a label to what has none.
WAYS_OUT = {
    UNJUDGED: "The labelling says why it could judge none",
    COPY: "Raise sample.temperatures: most are copies",
    TIED: "Preferences must have answers that win more often than they lose, and others that lose",
    UNFINISHED_GOOD: "Raise sample.max_new_tokens",
    UNFINISHED_BAD: "Raise sample.max_new_tokens, or set unpaired.unfinished=keep",
}


def ways_out(ended: float) -> dict[str, str]:
    """Return what would give a label to what has none, by reason, where this share of the candidates ended."""
    advice = ending_advice(ended)
    return WAYS_OUT | dict.fromkeys((UNFINISHED_GOOD, UNFINISHED_BAD), advice) if advice else WAYS_OUT


def labels(
    judgements: Iterable[Judgement], candidates: Iterable[Candidate], cfg: Unpaired
) -> tuple[dict[str, bool], Counter[str]]:
    """Whether each candidate is desirable, by id; how many have no label, by reason. A candidate that was cut off is
    never desirable: that would teach to go on."""
    scores, balance = dict[str, float](), Counter[str]()
    for j in judgements:
        if j.score is not None:
            scores[str(j.candidate_id)] = j.score
        if j.preference is not None:
            sign = {"a": 1, "b": -1}.get(j.preference, 0)
            balance.update({str(j.a): sign})
            balance.update({str(j.b): -sign})
    found, out, texts = dict[str, bool](), Counter[str](), set[str]()
    for candidate in candidates:
        name = candidate.candidate_id
        label = scores[name] >= cfg.threshold if name in scores else balance[name] > 0
        text = content_id(candidate.prompt_id, candidate.stripped_text)
        unfinished = candidate.finish_reason != "stop"
        if name not in scores and name not in balance:
            out[UNJUDGED] += 1
        elif name not in scores and not balance[name]:
            out[TIED] += 1
        elif unfinished and label:
            out[UNFINISHED_GOOD] += 1
        elif unfinished and cfg.unfinished is Unfinished.drop:
            out[UNFINISHED_BAD] += 1
        elif text in texts:
            out[COPY] += 1
        else:
            found[name] = label
            texts.add(text)
    return found, out


def threshold(scores: Sequence[float], desirable: bool) -> str:
    """Which threshold tells apart completions with these scores, all of them desirable or all undesirable."""
    low, high = min(scores), max(scores)
    if low == high:
        return f"Every score is {low:g}, which no threshold tells apart"
    return f"Raise it above {low:g}" if desirable else f"Lower it to {high:g} or less"
