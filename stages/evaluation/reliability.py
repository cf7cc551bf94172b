"""How wrong a labelling is: random judgements of it against labels that are known, by a program or from people.

`label.audit=N` sets N judgements aside, drawn by a hash: never those that look doubtful, which would say nothing of
the rest. What is known of them comes from the checks of their prompts, or from `label.known`, a file as `audit.jsonl`
with its blanks filled in. From the error rates follows what may be expected of pairs, and a rate of all other
judgements that is corrected for them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.errors import UserError
from stages.evaluation import agreement
from stages.evaluation.agreement import Estimate
from stages.store.records import Candidate, Example, Judgement, content_id
from stages.store.sealed_json import WRONG_SHAPE
from stages.tasks.checks import share_passed

KNOWN_WORDS = "known.jsonl"  # in a label node: what a file or people said of the judgements that were set aside
GOOD = 0.5  # a score of so much says that an answer is good
SAMPLES = 2000  # draws of prompts for the intervals of κ and α
WORDS = {False: ("a", "b", "tie"), True: ("good", "bad")}  # what is said of two candidates; of one
Key = tuple[str, ...]


def key_of(j: Judgement) -> Key:
    return (j.candidate_id,) if j.candidate_id else (str(j.a), str(j.b))


def said(j: Judgement) -> str | None:
    """What a judgement says, in one of WORDS; None where it is missing."""
    return j.preference if j.score is None else "good" if j.score >= GOOD else "bad"


def decided(judgements: Iterable[Judgement], candidates: Mapping[str, Candidate]) -> list[Judgement]:
    """Return the judgements that are not missing and that somebody had to make: two copies are a tie without a judge.
    Of several judgements of the same texts one counts, whichever `set_aside` draws first."""
    of_texts = dict[Key, Judgement]()
    for j in judgements:
        if j.error is None and (j.candidate_id or not equal(j, candidates)):
            texts = j.prompt_id, *sorted(candidates[name].stripped_text for name in key_of(j))
            first = of_texts.setdefault(texts, j)
            if first is not j and turn(j) < turn(first):
                of_texts[texts] = j
    return [*of_texts.values()]


def equal(j: Judgement, candidates: Mapping[str, Candidate]) -> bool:
    return candidates[str(j.a)].stripped_text == candidates[str(j.b)].stripped_text


def set_aside(judgements: Iterable[Judgement], count: int) -> list[Judgement]:
    """So many of the judgements, at random, and the same ones every time."""
    return sorted(judgements, key=turn)[:count]


def turn(j: Judgement) -> str:
    """Return a judgement's place in the order in which judgements are drawn: a hash that knows no verdict."""
    return content_id("audit", *key_of(j))


def blanks(
    audit: Sequence[Judgement], prompts: Mapping[str, Example], candidates: Mapping[str, Candidate]
) -> list[Any]:
    """The rows of `audit.jsonl`: what was judged, without the judge's word, and a blank for a person's."""
    rows = []
    for j in audit:
        texts = {
            name: candidates[i].text
            for name, i in zip("ab" if not j.candidate_id else ["answer"], key_of(j), strict=True)
        }
        words = " or ".join(WORDS[bool(j.candidate_id)])
        rows.append(
            {"judged": key_of(j), "prompt": prompts[j.prompt_id].messages, **texts, "words": words, "known": None}
        )
    return rows


def from_file(path: Path) -> dict[Key, str]:
    """What a file says of judgements: rows of `audit.jsonl`, with one of its words as `known`; blanks are left out.

    Raises:
        UserError: naming the first line that is none.
    """
    found = dict[Key, str]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            key, known = tuple(map(str, row["judged"])), row["known"]
            if known is not None and known not in WORDS[len(key) == 1]:
                raise ValueError(f"known is {known!r}, and not {', '.join(WORDS[len(key) == 1])}")
        except WRONG_SHAPE as error:
            raise UserError(f"label.known={path}: line {number} is no row of audit.jsonl: {error}.") from error
        found |= {key: known} if known is not None else {}
        if known is not None and len(key) == 2:
            found[key[::-1]] = {"a": "b", "b": "a"}.get(known, known)
    return found


def from_checks(
    audit: Iterable[Judgement], prompts: Mapping[str, Example], candidates: Mapping[str, Candidate]
) -> dict[Key, str]:
    """What the checks of their prompts say of judgements: an answer is good if it passes all, and better than another
    if it passes more."""
    found = dict[Key, str]()
    for j in audit:
        if checks := prompts[j.prompt_id].checks:
            passed = [share_passed(checks, candidates[i].text) for i in key_of(j)]
            if len(passed) == 1:
                found[key_of(j)] = "good" if passed[0] == 1 else "bad"
            else:
                found[key_of(j)] = "tie" if passed[0] == passed[1] else "a" if passed[0] > passed[1] else "b"
    return found


def reliability(
    judgements: Sequence[Judgement],
    audit: Sequence[Judgement],
    known: Mapping[Key, str],
    prompts: Mapping[str, Example],
    candidates: Mapping[str, Candidate],
) -> dict[str, Any]:
    """What `reliability.json` holds. A positive is a good answer; of two candidates, that a, whose place is random, is
    better."""
    swapped = [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    missing = Counter(j.error for j in judgements if j.error)
    told: dict[str, Any] = {
        "judgements": len(judgements),
        "missing": dict(missing),
        "order_flips": agreement.share(swapped.count(False), len(swapped)).told() if swapped else None,
        "audited": len(audit),
        "known": sum(key_of(j) in known for j in audit),
    }
    sure = [(j, str(said(j)), known[key_of(j)]) for j in audit if key_of(j) in known]
    if not sure:
        return told
    single = bool(sure[0][0].candidate_id)
    words = WORDS[single]
    right = [judge == truth for _, judge, truth in sure]
    (right1, known1), (right0, known0) = (error_counts(sure, words[0], positive) for positive in (True, False))
    told |= {
        "accuracy": agreement.share(sum(right), len(right)).told(),
        "sensitivity": agreement.share(right1, known1).told() if known1 else None,
        "specificity": agreement.share(right0, known0).told() if known0 else None,
        **agreements(sure, words),
        "length": {who: lengths(sure, place, candidates) for place, who in ((1, "judge"), (2, "known"))},
        "by_topic": topics(sure, right, prompts),
    }
    if not single and (preferences := [(judge, truth) for _, judge, truth in sure if judge != "tie"]):
        neither = sum(truth == "tie" for _, truth in preferences)
        accurate = sum(judge == truth for judge, truth in preferences)
        counts = {"accuracy": accurate, "wrong": len(preferences) - accurate - neither, "neither": neither}
        told |= {f"pair_{name}": agreement.share(n, len(preferences)).told() for name, n in counts.items()}
    aside = {key_of(j) for j in audit}
    rest = [said(j) == words[0] for j in decided(judgements, candidates) if key_of(j) not in aside]
    if rest:
        told["positive_rate"] = {"of": words[0], "judged": agreement.share(sum(rest), len(rest)).told()}
        clear = agreement.tells_apart(right1, known1, right0, known0)
        rate = agreement.corrected(sum(rest) / len(rest), len(rest), right1, known1, right0, known0) if clear else None
        told["positive_rate"]["corrected"] = rate.told() if rate else None
    return told


def error_counts(sure: Sequence[tuple[Judgement, str, str]], word: str, positive: bool) -> tuple[int, int]:
    """How often the judge was right of the known positives, or negatives; and how many these are."""
    of = [(judge == word) == positive for _, judge, truth in sure if (truth == word) == positive]
    return sum(of), len(of)


def agreements(sure: Sequence[tuple[Judgement, str, str]], words: Sequence[str]) -> dict[str, Any]:
    """κ and α, with intervals over prompts."""
    counts = defaultdict[str, Any](lambda: np.zeros((len(words), len(words))))
    for j, judge, truth in sure:
        counts[j.prompt_id][words.index(judge), words.index(truth)] += 1
    each = np.array([*counts.values()])
    drawn = agreement.resampled(each, SAMPLES)
    told = dict[str, Any]()
    for name, measure in (("kappa", agreement.kappa), ("alpha", agreement.alpha)):
        draws, mean = measure(drawn), float(measure(each.sum(0)))
        draws = draws[np.isfinite(draws)]
        bounds = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
        told[name] = Estimate(mean, *bounds).told() if np.isfinite(mean) else None
    return told


def lengths(sure: Sequence[tuple[Any, ...]], place: int, candidates: Mapping[str, Candidate]) -> float | None:
    """How far length goes with what is said: how often the longer of two is preferred; of single answers, by how many
    tokens good ones are longer."""
    if sure[0][0].candidate_id:
        by = {
            word: [candidates[row[0].candidate_id].n_tokens for row in sure if row[place] == word]
            for word in WORDS[True]
        }
        return float(np.mean(by["good"]) - np.mean(by["bad"])) if all(by.values()) else None
    gaps = [candidates[row[0].a].n_tokens - candidates[row[0].b].n_tokens for row in sure]
    longer = [
        (gap > 0) == (row[place] == "a") for gap, row in zip(gaps, sure, strict=True) if gap and row[place] != "tie"
    ]
    return float(np.mean(longer)) if longer else None


def topics(
    sure: Sequence[tuple[Judgement, str, str]], right: Sequence[bool], prompts: Mapping[str, Example]
) -> dict[str, Any]:
    """Accuracy for each task."""
    found = defaultdict[str, list[bool]](list)
    for (j, _, _), hit in zip(sure, right, strict=True):
        for task in prompts[j.prompt_id].tasks:
            found[task].append(hit)
    return {
        task: {"n": len(hits), **agreement.share(sum(hits), len(hits)).told()} for task, hits in sorted(found.items())
    }
