"""Stage `unpaired`: judged completions, each desirable or undesirable, in TRL's columns for KTO (arXiv:2402.01306).

A score labels a completion by a threshold. Where labels are preferences, a completion that wins more often than it
loses is desirable, one that loses more often is undesirable (Copeland, as in `pairing/contrasts.py`). A completion
without a label is left out, with the reason. The stage reads judgements and no pairs: another pair strategy changes
no label, and another threshold no pair.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Unpaired
from stages.config.choices import Unfinished
from stages.config.errors import UserError
from stages.pairing.admission import order_message
from stages.store.records import Candidate, Example, Judgement, Message, Records, content_id, load, save, stream
from stages.store.splits import side
from stages.store.table_schema import Int32
from stages.store.truncation import ending_advice, resolve_unfinished, share_ended
from stages.store.workspace import StageDir

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


def run(cfg: Unpaired, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `unpaired.parquet`; a prompt is held out here where its pairs are.

    Raises:
        UserError: where all labels are alike: there is nothing to tell apart.
    """
    judged = inputs["judged"]
    candidates = Records(judged / "candidates.parquet", Candidate)
    judgements = load(judged / "judgements.parquet", Judgement)
    labeler = judgements[0].labeler if judgements else ""
    scores = {j.candidate_id: j.score for j in judgements if j.score is not None}
    ended = share_ended(judged)
    cfg = replace(cfg, unfinished=resolve_unfinished(cfg.unfinished, ended))
    label_by_id, left_out = label_candidates(judgements, candidates, cfg)
    desirable = sum(label_by_id.values())
    left_out_note = "".join(f"; {count} left out: {reason}" for reason, count in left_out.most_common())
    if desirable in (0, len(label_by_id)):
        all_alike = f"all of {len(label_by_id)} completions are {'desirable' if desirable else 'undesirable'}"
        finding = all_alike if label_by_id else "no completion has a label"
        ended_ids = (c.candidate_id for c in candidates if c.candidate_id in label_by_id and c.finish_reason == "stop")
        labelled_scores = [scores[name] for name in ended_ids if name in scores]
        if labelled_scores:
            finding = f"unpaired.threshold={cfg.threshold:g}: {finding}"
        reason = next((why for why, _ in left_out.most_common(1)), "")
        order_note = order_message(judgements) if reason == TIED else ""
        way_out = (
            threshold_advice(labelled_scores, bool(desirable))
            if labelled_scores
            else order_note or label_advice(ended).get(reason, "")
        )
        parts = [f"{finding}{left_out_note}", "KTO learns from desirable and undesirable ones", way_out]
        raise UserError(". ".join(filter(None, parts)) + ".")
    prompts = {p.id: p for p in stream(judged / "prompts.parquet", Example)}
    held_out = 0

    def rows() -> Iterator[UnpairedPreference]:
        nonlocal held_out
        for c in candidates:
            if (label := label_by_id.get(c.candidate_id)) is not None:
                record = row(prompts[c.prompt_id], c, label, scores.get(c.candidate_id), labeler, cfg)
                held_out += record.split == "validation"
                yield record

    save(out / "unpaired.parquet", rows(), UnpairedPreference)
    return {
        "completions": len(label_by_id),
        "desirable": desirable,
        "undesirable": len(label_by_id) - desirable,
        "held_out": held_out,
        "left_out": dict(left_out),
        "summary": f"{desirable} desirable and {len(label_by_id) - desirable} undesirable completions ({held_out} held out) of "
        f"{len(candidates)}{left_out_note}",
    }


@dataclass
class UnpairedPreference:
    """TRL's conversational columns for KTO, what the label comes from, and the token ids of the completion where they
    were drawn. One that was cut off (length) is undesirable. `score` is None where the label comes from preferences.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    label: bool
    score: float | None
    labeler: str
    candidate_id: str
    split: str  # train or validation
    completion_token_ids: list[Int32] | None = None
    completion_tokenizer: str | None = None
    finish_reason: str = "stop"
    policy: str | None = None


def row(
    prompt: Example, candidate: Candidate, label: bool, score: float | None, labeler: str, cfg: Unpaired
) -> UnpairedPreference:
    return UnpairedPreference(
        id=content_id(prompt.id, candidate.text),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        completion=[{"role": "assistant", "content": candidate.text}],
        label=label,
        score=score,
        labeler=labeler,
        candidate_id=candidate.candidate_id,
        split=side(prompt.id, cfg.validation_fraction),
        completion_token_ids=candidate.token_ids,
        completion_tokenizer=candidate.tokenizer,
        finish_reason=candidate.finish_reason,
        policy=candidate.policy,
    )


def label_candidates(
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
    label_by_id, left_out, texts = dict[str, bool](), Counter[str](), set[str]()
    for candidate in candidates:
        name = candidate.candidate_id
        label = scores[name] >= cfg.threshold if name in scores else balance[name] > 0
        text = content_id(candidate.prompt_id, candidate.stripped_text)
        unfinished = candidate.finish_reason != "stop"
        if name not in scores and name not in balance:
            left_out[UNJUDGED] += 1
        elif name not in scores and not balance[name]:
            left_out[TIED] += 1
        elif unfinished and label:
            left_out[UNFINISHED_GOOD] += 1
        elif unfinished and cfg.unfinished is Unfinished.drop:
            left_out[UNFINISHED_BAD] += 1
        elif text in texts:
            left_out[COPY] += 1
        else:
            label_by_id[name] = label
            texts.add(text)
    return label_by_id, left_out


def label_advice(ended: float) -> dict[str, str]:
    """Return what would give a label to what has none, by reason, where this share of the candidates ended."""
    advice = ending_advice(ended)
    return WAYS_OUT | dict.fromkeys((UNFINISHED_GOOD, UNFINISHED_BAD), advice) if advice else WAYS_OUT


def threshold_advice(scores: Sequence[float], desirable: bool) -> str:
    """Which threshold tells apart completions with these scores, all of them desirable or all undesirable."""
    low, high = min(scores), max(scores)
    if low == high:
        return f"Every score is {low:g}, which no threshold tells apart"
    return f"Raise it above {low:g}" if desirable else f"Lower it to {high:g} or less"
