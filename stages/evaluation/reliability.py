"""Reliability of a labelling: randomly drawn judgements compared with known labels.

`label.audit=N` draws N judgements by a hash. Choosing doubtful judgements instead would say nothing about the others.
Known labels come from the checks of their prompts, or from `label.known`, a copy of `audit.jsonl` with its blanks
filled in. The error rates give the expected accuracy of pairs, and correct the rate of all other judgements."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.errors import UserError
from stages.evaluation import agreement, estimate
from stages.store.records import Candidate, Example, Judgement, Records, content_id
from stages.store.sealed_json import WRONG_SHAPE
from stages.tasks.checks import share_passed

KNOWN_WORDS = "known.jsonl"  # file in a label node with the known labels of audited judgements
OWN_VOTE = "ensemble"  # key in `raw` of the vote of an ensemble that people's verdict replaced
GOOD = 0.5  # the lowest score of a good answer
# labels of two candidates (False) or of a single one (True)
WORDS = {False: ("a", "b", "tie"), True: ("good", "bad")}
Key = tuple[str, ...]
Prompts = Mapping[str, Example]  # by id
Candidates = Mapping[str, Candidate]  # by id
# judgements with the judge's label and the known one
Audited = Sequence[tuple[Judgement, str, str]]
Hit = tuple[Judgement, bool]  # whether a judgement has a property


def key_of(j: Judgement) -> Key:
    return (j.candidate_id,) if j.candidate_id else (str(j.a), str(j.b))


def word_of(j: Judgement) -> str | None:
    """Return a judgement's label, one of WORDS; None if the judgement is missing. A verifier's good answer passes all
    checks, as in `known_by_checks`."""
    lowest = 1.0 if j.labeler == "verifier" else GOOD
    return j.preference if j.score is None else "good" if j.score >= lowest else "bad"


def own_vote(j: Judgement) -> Judgement:
    """Return a judgement as its labeler made it. An ensemble's vote that people replaced is in `raw`."""
    votes = json.loads(j.raw or "{}") if j.labeler == "ensemble" else {}
    return replace(j, preference=votes.get(OWN_VOTE, j.preference))


def countable(judgements: Iterable[Judgement], candidates: Candidates) -> list[Judgement]:
    """List the judgements that are present and needed a judge: two copies are a tie without one. If several judgements
    are about the same texts, only the one that `draw_audit` draws first counts. If there are scores and preferences,
    only the kind that it draws first counts."""
    of_texts = dict[Key, Judgement]()
    for j in draw_audit(judgements):
        if j.error is None and (j.candidate_id or not is_copy(j, candidates)):
            of_texts.setdefault(
                (j.prompt_id, *sorted(candidates[name].answer.strip() for name in key_of(j))), j
            )
    drawn = [*of_texts.values()]
    return [j for j in drawn if bool(j.candidate_id) == bool(drawn[0].candidate_id)]


def is_copy(j: Judgement, candidates: Candidates) -> bool:
    """Return whether both answers are the same, thoughts apart."""
    return candidates[str(j.a)].answer.strip() == candidates[str(j.b)].answer.strip()


def draw_audit(judgements: Iterable[Judgement], count: int | None = None) -> list[Judgement]:
    """Draw `count` judgements at random, the same ones every time and for all verdicts; None: all in that order."""
    return sorted(judgements, key=lambda j: content_id("audit", *key_of(j)))[:count]


def audit_rows(audit: Sequence[Judgement], prompts: Prompts, candidates: Candidates) -> list[Any]:
    """Return the rows of `audit.jsonl`: the judged texts without the judge's label, and a blank for the known one."""
    rows = []
    for j in audit:
        names, prompt = ["answer"] if j.candidate_id else ["a", "b"], prompts[j.prompt_id].messages
        texts = {name: candidates[i].answer for name, i in zip(names, key_of(j), strict=True)}
        words = " or ".join(WORDS[bool(j.candidate_id)])
        rows.append({"judged": key_of(j), "prompt": prompt, **texts, "words": words, "known": None})
    return rows


def read_known_words(path: Path, setting: str = "label.known") -> dict[Key, str]:
    """Read known labels by the judged candidates' ids, from rows of `audit.jsonl` with `known` filled in. `setting`: the
    key that names the file.
    Raise UserError for the first line that is not such a row."""
    words = dict[Key, str]()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            key, word = tuple(map(str, row["judged"])), row["known"]
            if word is not None and word not in WORDS[len(key) == 1]:
                raise ValueError(
                    f"known is {word!r}. Use one of {', '.join(WORDS[len(key) == 1])}, or null"
                )
        except WRONG_SHAPE as error:
            raise UserError(
                f"{setting}={path}: line {number} is not a row of audit.jsonl: {error}."
            ) from error
        words |= {key: word} if word is not None else {}
        if word is not None and len(key) == 2:
            words[key[::-1]] = {"a": "b", "b": "a"}.get(word, word)
    return words


def known_by_checks(
    audit: Iterable[Judgement], prompts: Prompts, candidates: Candidates
) -> dict[Key, str]:
    """Return known labels from checks: a good answer passes all checks, and a better one passes more."""
    words = dict[Key, str]()
    for j in audit:
        if checks := prompts[j.prompt_id].checks:
            passed = [share_passed(checks, candidates[i].answer) for i in key_of(j)]
            if len(passed) == 1:
                words[key_of(j)] = "good" if passed[0] == 1 else "bad"
            else:
                words[key_of(j)] = (
                    "tie" if passed[0] == passed[1] else "a" if passed[0] > passed[1] else "b"
                )
    return words


def reliability(
    judgements: Sequence[Judgement] | Records[Judgement],
    audit: Sequence[Judgement],
    known_words: Mapping[Key, str],
    prompts: Prompts,
    candidates: Candidates,
) -> dict[str, Any]:
    """Return the content of `reliability.json`. A positive is a good answer or, of two candidates, a better `a`."""
    swapped = [j for j in judgements if j.order_swapped_agrees is not None]
    figures: dict[str, Any] = {
        "judgements": len(judgements),
        "missing": dict(Counter(j.error for j in judgements if j.error)),
        "order_flips": share((j, not j.order_swapped_agrees) for j in swapped),
        "audited": len(audit),
        "known": sum(key_of(j) in known_words for j in audit),
    }
    if not (
        audited := [
            (j, str(word_of(j)), known_words[key_of(j)]) for j in audit if key_of(j) in known_words
        ]
    ):
        return figures
    words = WORDS[single := bool(audited[0][0].candidate_id)]
    right = [(j, judge == truth) for j, judge, truth in audited]
    positives, negatives = (hits_among(audited, words[0], positive) for positive in (True, False))
    figures |= {
        "accuracy": share(right),
        "sensitivity": share(positives),
        "specificity": share(negatives),
        **agreements(audited, words),
        "length": {
            who: lengths(audited, place, candidates) for place, who in ((1, "judge"), (2, "known"))
        },
        "by_topic": topics(right, prompts),
    }
    if not single:
        preferences = [each for each in audited if each[1] != "tie"]
        verdicts = {
            "accuracy": [(j, judge == truth) for j, judge, truth in preferences],
            "wrong": [(j, truth not in (judge, "tie")) for j, judge, truth in preferences],
            "neither": [(j, truth == "tie") for j, _, truth in preferences],
        }
        figures |= {f"pair_{name}": share(hits) for name, hits in verdicts.items() if hits}
    audited_keys = {key_of(j) for j in audit}
    unaudited = [
        (j, word_of(j) == words[0])
        for j in countable(map(own_vote, judgements), candidates)
        if key_of(j) not in audited_keys
    ]
    if unaudited:
        figures["positive_rate"] = {
            "of": words[0],
            "judged": share(unaudited),
            "corrected": corrected(unaudited, positives, negatives),
        }
    return figures


def share(hits: Iterable[Hit]) -> dict[str, float] | None:
    """Return the share of hits with its interval, in which judgements of one prompt are alike; None without any."""
    rows = [*hits]
    return asdict(estimated(rows).interval()) if rows else None


def estimated(hits: Sequence[Hit]) -> estimate.Share:
    return estimate.share([hit for _, hit in hits], [j.prompt_id for j, _ in hits])


def corrected(
    unaudited: Sequence[Hit], positives: Sequence[Hit], negatives: Sequence[Hit]
) -> dict[str, float] | None:
    """Return the share of positives corrected for the judge's errors, None if it knows too little for that."""
    if not (positives and negatives):
        return None
    judged, known1, known0 = map(estimated, (unaudited, positives, negatives))
    errors = (
        known1.mean * known1.effective,
        known1.effective,
        known0.mean * known0.effective,
        known0.effective,
    )
    if not estimate.discriminates(*errors):
        return None
    return asdict(estimate.corrected_rate(judged.mean, judged.effective, *errors))


def hits_among(audited: Audited, word: str, positive: bool) -> list[Hit]:
    """Return for each known positive (or negative) whether the judge got it right."""
    return [
        (j, (judge == word) == positive)
        for j, judge, truth in audited
        if (truth == word) == positive
    ]


def agreements(audited: Audited, words: Sequence[str]) -> dict[str, Any]:
    """Return κ and α with bootstrap intervals over prompts."""
    counts = defaultdict[str, Any](lambda: np.zeros((len(words), len(words))))
    for j, judge, truth in audited:
        counts[j.prompt_id][words.index(judge), words.index(truth)] += 1
    matrices = np.array([*counts.values()])
    measured = {
        "kappa": estimate.resampled(agreement.kappa, matrices),
        "alpha": estimate.resampled(agreement.alpha, matrices),
    }
    return {name: each and asdict(each) for name, each in measured.items()}


def lengths(audited: Sequence[tuple[Any, ...]], place: int, candidates: Candidates) -> float | None:
    """The length bias: how often the longer answer is preferred, or how many tokens longer good answers are."""
    if audited[0][0].candidate_id:
        tokens = [(row[place], candidates[row[0].candidate_id].length) for row in audited]
        good, bad = ([count for word, count in tokens if word == which] for which in WORDS[True])
        return float(np.mean(good) - np.mean(bad)) if good and bad else None
    gaps = [
        (candidates[row[0].a].length - candidates[row[0].b].length, row[place]) for row in audited
    ]
    longer = [(gap > 0) == (word == "a") for gap, word in gaps if gap and word != "tie"]
    return float(np.mean(longer)) if longer else None


def topics(right: Sequence[Hit], prompts: Prompts) -> dict[str, Any]:
    """Return the accuracy on each task."""
    by_task = defaultdict[str, list[Hit]](list)
    for j, hit in right:
        for task in prompts[j.prompt_id].tasks:
            by_task[task].append((j, hit))
    return {
        task: {"n": len(hits), **asdict(estimated(hits).interval())}
        for task, hits in sorted(by_task.items())
    }
