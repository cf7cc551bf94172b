"""Stage `unpaired`: label judged completions as desirable or undesirable, in TRL's columns for KTO (arXiv:2402.01306).

A scored completion is desirable from a threshold on. With preferences, a completion that wins more often than it loses
is desirable, and one that loses more often is undesirable (Copeland, as in `pairing/contrasts.py`). A completion
without a label is left out and counted by reason. The stage does not read pairs, so pair settings change no label."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Unpaired
from stages.config.choices import Unfinished
from stages.config.errors import UserError
from stages.config.override_text import override
from stages.curation.near_equal import split_rows
from stages.pairing.admission import order_message
from stages.store.records import (
    Candidate,
    Example,
    Judgement,
    Records,
    content_id,
    load,
    save,
    stream,
)
from stages.store.single_completions import UnpairedPreference
from stages.store.truncation import ending_advice, resolve_unfinished, share_ended
from stages.store.workspace import StageDir

UNJUDGED = "no judgement"
TIED = "as many preferences for it as against it"
COPY = "the text of another one"
SEVERAL_TURNS = "several turns, which KTO does not train"
UNFINISHED_GOOD = "desirable and unfinished"
UNFINISHED_BAD = "undesirable and unfinished"
# Advice to get labels, by the reason why completions have none.
WAYS_OUT = {
    UNJUDGED: "The warnings of stage=label say why",
    COPY: "Raise sample.temperatures",
    TIED: "Use preferences in which some answers win more often than they lose",
    SEVERAL_TURNS: "Set align=dpo",
    UNFINISHED_GOOD: "Raise sample.max_new_tokens",
    UNFINISHED_BAD: "Set unpaired.unfinished=keep",
}


def run(cfg: Unpaired, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `unpaired.parquet`, held out as in `pairs`. Raise UserError if all labels are equal: KTO needs both."""
    judged = inputs["judged"]
    candidates = Records(judged / "candidates.parquet", Candidate)
    judgements = load(judged / "judgements.parquet", Judgement)
    ended = share_ended(judged)
    cfg = replace(cfg, unfinished=resolve_unfinished(cfg.unfinished, ended))
    labels, left_out = label_candidates(judgements, candidates, cfg)
    if left_out[SEVERAL_TURNS]:
        first = next(c for c in candidates if c.continuation)
        out.warn(f"{first.policy}: completions of {SEVERAL_TURNS}. {WAYS_OUT[SEVERAL_TURNS]}.")
    desirable = sum(labels.values())
    undesirable = len(labels) - desirable
    if not desirable or not undesirable:
        raise one_sided_error(cfg, judgements, labels, left_out, ended)
    prompts = {p.id: p for p in stream(judged / "prompts.parquet", Example)}
    rows = label_rows(candidates, judgements, labels, prompts)
    file = out / "unpaired.parquet"
    save(file, rows, UnpairedPreference)
    split = split_rows(file, UnpairedPreference, prompts.values(), cfg.validation_fraction)
    split.report("unpaired.validation_fraction", out)
    return {
        "completions": len(labels),
        "prompts": len(prompts),
        "desirable": desirable,
        "undesirable": undesirable,
        **split.figures,
        "left_out": dict(left_out),
        "summary": f"{desirable} desirable and {undesirable} undesirable of {len(candidates)} completions "
        f"({split.held_out_clause})",
    }


def label_rows(
    candidates: Iterable[Candidate],
    judgements: list[Judgement],
    labels: dict[str, bool],
    prompts: dict[str, Example],
) -> Iterator[UnpairedPreference]:
    """Yield the labelled completions in TRL's columns, as training rows. `split_rows` holds some of them out."""
    score_by_id = {j.candidate_id: j.score for j in judgements if j.score is not None}
    for candidate in candidates:
        if candidate.candidate_id not in labels:
            continue
        prompt = prompts[candidate.prompt_id]
        yield UnpairedPreference(
            id=content_id(prompt.id, candidate.text),
            prompt_id=prompt.id,
            prompt=prompt.messages,
            completion=[{"role": "assistant", "content": candidate.text}],
            label=labels[candidate.candidate_id],
            score=score_by_id.get(candidate.candidate_id),
            labeler=judgements[0].labeler,
            candidate_id=candidate.candidate_id,
            split="train",
            completion_token_ids=candidate.token_ids,
            completion_tokenizer=candidate.tokenizer,
            finish_reason=candidate.finish_reason,
            policy=candidate.policy,
        )


def one_sided_error(
    cfg: Unpaired,
    judgements: list[Judgement],
    labels: dict[str, bool],
    left_out: Counter[str],
    ended_share: float,
) -> UserError:
    """Return the error for labels of which not one, or every one, is desirable. `ended_share` is that of candidates
    which ended their turn."""
    finding = "no completion has a label"
    if labels:
        side = "desirable" if any(labels.values()) else "undesirable"
        finding = f"all {len(labels)} labelled completions are {side}"
    reason = max(left_out, key=left_out.__getitem__, default=UNJUDGED)
    way_out = WAYS_OUT[reason]
    scores = [j.score for j in judgements if j.score is not None and j.candidate_id in labels]
    if reason in (UNFINISHED_GOOD, UNFINISHED_BAD):
        way_out = ending_advice(ended_share) or way_out
    elif reason == TIED:
        way_out = order_message(judgements) or way_out
    if scores:
        finding = f"unpaired.threshold={cfg.threshold:g}: {finding}"
        way_out = threshold_advice(scores)
    reasons = "".join(f"; {count} left out: {name}" for name, count in left_out.most_common())
    return UserError(
        f"{finding}{reasons}. KTO needs desirable and undesirable completions. {way_out}."
    )


def threshold_advice(scores: list[float]) -> str:
    """Return the threshold that divides scores, which is the middle of the different ones, or that none does."""
    different = sorted({*scores})
    if len(different) == 1:
        return f"All of them have the score {different[0]:g}, which no threshold divides: add completions with others"
    middle = override("unpaired.threshold", different[len(different) // 2])
    return f"Set {middle}, which divides their scores"


def label_candidates(
    judgements: Iterable[Judgement], candidates: Iterable[Candidate], cfg: Unpaired
) -> tuple[dict[str, bool], Counter[str]]:
    """Return labels by candidate id (True: desirable), and counts of unlabelled candidates by reason. A truncated
    candidate is never desirable, because it would teach endless answers."""
    scores = dict[str, float]()
    wins_minus_losses = Counter[str]()
    for j in judgements:
        if j.score is not None:
            scores[str(j.candidate_id)] = j.score
        if j.preference is not None:
            sign = {"a": 1, "b": -1}.get(j.preference, 0)
            wins_minus_losses[str(j.a)] += sign
            wins_minus_losses[str(j.b)] -= sign
    label_by_id = dict[str, bool]()
    left_out = Counter[str]()
    labelled_before = set[str]()
    for candidate in candidates:
        candidate_id = candidate.candidate_id
        desirable = wins_minus_losses[candidate_id] > 0
        if candidate_id in scores:
            desirable = scores[candidate_id] >= cfg.threshold
        prompt_and_text = content_id(candidate.prompt_id, candidate.stripped_text)
        unfinished = candidate.finish_reason != "stop"
        if candidate_id not in scores and candidate_id not in wins_minus_losses:
            left_out[UNJUDGED] += 1
        elif candidate_id not in scores and not wins_minus_losses[candidate_id]:
            left_out[TIED] += 1
        elif candidate.continuation:
            left_out[SEVERAL_TURNS] += 1
        elif unfinished and desirable:
            left_out[UNFINISHED_GOOD] += 1
        elif unfinished and cfg.unfinished is Unfinished.drop:
            left_out[UNFINISHED_BAD] += 1
        elif prompt_and_text in labelled_before:
            left_out[COPY] += 1
        else:
            label_by_id[candidate_id] = desirable
            labelled_before.add(prompt_and_text)
    return label_by_id, left_out
