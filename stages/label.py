"""Stage `label`: every candidate gets a judgement, or its absence a reason. Judging is a node of its own because it
may cost money: another pair strategy does not ask again."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.errors import UserError
from stages.config.schema import Label
from stages.formats.files import quarantine
from stages.labelers import dataset, verifier
from stages.store.records import Candidate, Example, Judgement, load, save
from stages.store.work import Work

Judged = tuple[list[Example], list[Candidate], list[Judgement]]


def run(cfg: Label, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish the judged pool: `prompts.parquet`, `candidates.parquet`, `judgements.parquet`.

    Raises:
        UserError: where more judgements than `max_failed` are missing.
    """
    prompts, candidates, judgements = from_dataset(cfg, out) if cfg.labeler == "dataset" else verify(inputs["pool"])
    failed = Counter(j.error for j in judgements if j.error)
    if failed.total() > cfg.max_failed * len(judgements):
        error, count = failed.most_common(1)[0]
        raise UserError(
            f"{failed.total()} of {len(judgements)} candidates could not be judged, more than label.max_failed="
            f"{cfg.max_failed:g} allows; most often ({count} times): {error}."
        )
    save(out / "prompts.parquet", prompts, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    save(out / "judgements.parquet", judgements, Judgement)
    return {"labeler": cfg.labeler, "failed": dict(failed), **report(candidates, judgements)}


def verify(pool: Path) -> Judged:
    prompts, candidates = load(pool / "prompts.parquet", Example), load(pool / "candidates.parquet", Candidate)
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_prompt.setdefault(candidate.prompt_id, []).append(candidate)
    return prompts, candidates, [j for example in prompts for j in verifier.judge(example, by_prompt[example.id])]


def from_dataset(cfg: Label, out: Work) -> Judged:
    """A preference file's rows; those that cannot be used are quarantined."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)
    prompts, candidates, judgements, bad = dataset.read(cfg)
    if not judgements and not bad:
        raise UserError(f"label.path={cfg.path}: holds no rows.")
    limit = cfg.max_failed if judgements else 0.0
    quarantine(bad, len(judgements) + len(bad), limit, out, "label.max_failed")
    return prompts, candidates, judgements


def report(candidates: list[Candidate], judgements: list[Judgement]) -> dict[str, Any]:
    """What every labelling tells of itself: scores, ties, and how far longer answers are preferred."""
    lengths = {c.candidate_id: c.n_tokens for c in candidates}
    scored = [j for j in judgements if j.score is not None]
    figures: dict[str, Any] = {"judgements": len(judgements)}
    if scored:
        scores = np.array([j.score for j in scored])
        length = np.array([lengths[str(j.candidate_id)] for j in scored])
        varied = scores.std() > 0 and length.std() > 0
        figures |= {
            "pass_rate": float((scores == 1).mean()),
            "mean_score": float(scores.mean()),
            "scores": {f"{s:.2f}": int((scores == s).sum()) for s in np.unique(scores)},
            "length_correlation": float(np.corrcoef(scores, length)[0, 1]) if varied else None,
            "summary": f"{len(scored)} candidates judged, {(scores == 1).mean():.1%} pass all checks",
        }
        return figures
    gaps = [
        (lengths[str(j.a)] - lengths[str(j.b)]) * (1 if j.preference == "a" else -1)
        for j in judgements
        if j.preference in ("a", "b")
    ]
    unequal = [gap > 0 for gap in gaps if gap]
    return figures | {
        "ties": sum(j.preference == "tie" for j in judgements),
        "longer_preferred": float(np.mean(unequal)) if unequal else None,
        "summary": f"{len(judgements)} preferences",
    }
