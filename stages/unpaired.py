"""Stage `unpaired`: judged completions one by one, each with a label, in TRL's columns for KTO.

It reads judgements and no pairs: another pair strategy changes none of these, nor another threshold a pair.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Unpaired
from stages.config.errors import UserError
from stages.pairing.admission import by_order
from stages.pairing.held_out import side
from stages.pairing.unpaired import TIED, labels, threshold, ways_out
from stages.store.records import Candidate, Example, Judgement, Records, content_id, load, save, stream
from stages.store.truncation import resolve_unfinished, share_ended
from stages.store.unpaired import UnpairedPreference
from stages.store.workspace import Work


def run(cfg: Unpaired, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
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
    found, without = labels(judgements, candidates, cfg)
    desirable = sum(found.values())
    told = "".join(f"; {count} left out: {reason}" for reason, count in without.most_common())
    if desirable in (0, len(found)):
        every = f"all of {len(found)} completions are {'desirable' if desirable else 'undesirable'}"
        said = every if found else "no completion has a label"
        whole = (c.candidate_id for c in candidates if c.candidate_id in found and c.finish_reason == "stop")
        of = [scores[name] for name in whole if name in scores]
        if of:
            said = f"unpaired.threshold={cfg.threshold:g}: {said}"
        reason = next((why for why, _ in without.most_common(1)), "")
        turned = by_order(judgements) if reason == TIED else ""
        way_out = threshold(of, bool(desirable)) if of else turned or ways_out(ended).get(reason, "")
        parts = [f"{said}{told}", "KTO learns from desirable and undesirable ones", way_out]
        raise UserError(". ".join(filter(None, parts)) + ".")
    prompts = {p.id: p for p in stream(judged / "prompts.parquet", Example)}
    aside = 0

    def rows() -> Iterator[UnpairedPreference]:
        nonlocal aside
        for c in candidates:
            if (label := found.get(c.candidate_id)) is not None:
                made = row(prompts[c.prompt_id], c, label, scores.get(c.candidate_id), labeler, cfg)
                aside += made.split == "validation"
                yield made

    save(out / "unpaired.parquet", rows(), UnpairedPreference)
    return {
        "completions": len(found),
        "desirable": desirable,
        "undesirable": len(found) - desirable,
        "held_out": aside,
        "left_out": dict(without),
        "summary": f"{desirable} desirable and {len(found) - desirable} undesirable completions ({aside} held out) of "
        f"{len(candidates)}{told}",
    }


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
