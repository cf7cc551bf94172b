"""Stage `label`: every candidate gets a judgement, or its absence a reason. Judging is a node of its own because it
may cost money: another pair strategy does not ask again."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.labels import Label
from stages.config.errors import UserError, in_the_name_of
from stages.evaluation import best_of, reliability
from stages.formats.source_reading import by_reason, quarantine, tell_unused
from stages.labelers.labeler import Pool, chosen
from stages.store import plugins
from stages.store.judged_pool import column
from stages.store.records import Candidate, Example, Judgement, save
from stages.store.sealed_json import note
from stages.store.workspace import StageDir


def run(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Label what `cfg` says, under the name that the block has in the configuration."""
    with in_the_name_of(cfg.name):
        return labelled(cfg, inputs, out)


def labelled(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish the judged pool: `prompts.parquet`, `candidates.parquet`, `judgements.parquet`; `quarantine.jsonl` where
    rows of a file could not be used; `audit.jsonl`, `reliability.json` and `known.jsonl` with `label.audit`.

    Raises:
        UserError: where more judgements than `max_failed` are missing, or a labeler of the user's own gives what is
            no judgement of these candidates.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    labeler = chosen(cfg, out)
    with plugins.told(cfg.own, "label.own", out.path):
        pool = labeler.pool(inputs)
        judgements = admitted(labeler.judge_all(pool), pool, labeler.name)
    limit = cfg.max_failed if pool.prompts else 0.0
    for line in pool.told:
        out.say(line)
    quarantine(list(pool.bad), pool.rows, limit, out, "label.max_failed")
    for path, columns in pool.unused.items():
        tell_unused(path, columns, out)
    failed = Counter(j.error for j in judgements if j.error)
    if failed.total() > cfg.max_failed * len(judgements):
        error, count = failed.most_common(1)[0]
        raise UserError(
            f"{failed.total()} of {len(judgements)} {units(judgements)} could not be judged, more than "
            f"label.max_failed={cfg.max_failed:g} allows; most often ({count} times): {error}."
        )
    if failed:
        most = failed.most_common(1)[0][0]
        out.warn(f"{failed.total()} of {len(judgements)} {units(judgements)} have no judgement: {most}.")
    save(out / "prompts.parquet", pool.prompts, Example)
    save(out / "candidates.parquet", pool.candidates, Candidate)
    save(out / "judgements.parquet", judgements, Judgement)
    lengths = dict(zip(column(pool.candidates, "candidate_id"), column(pool.candidates, "n_tokens"), strict=True))
    found = {"labeler": labeler.name, "failed": dict(failed), **figures(lengths, judgements)}
    if pool.told:
        found["read"] = [*pool.told]
    if pool.rows:
        found |= {"rows": pool.rows, "unusable": dict(by_reason(pool.bad))}
        unusable = f", {len(pool.bad)} of them unusable" if pool.bad else ""
        found["summary"] = f"{pool.rows} rows{unusable}: {found['summary']}"
    if out.asked:
        found["calls"] = out.asked
    found |= labeler.figures()
    if labeler.learnt and judgements:
        curve, doubt = best_of.watched(judgements, pool.prompts, pool.candidates)
        found |= curve
        for warning in filter(None, (doubt, best_of.by_length(found["length_correlation"]))):
            out.warn(warning)
    if cfg.audit:
        found["summary"] += f"; {audit(cfg, pool, judgements, labeler.known, out)}"
    return found


def audit(
    cfg: Label, pool: Pool, judgements: list[Judgement], said: Mapping[reliability.Key, str], out: StageDir
) -> str:
    """Write `audit.jsonl`, judgements set aside at random, and `reliability.json`, how far they agree with what is
    known: by a file, by what people have `said` of them, or by checks. What a file or people said of them becomes
    `known.jsonl`. Return it in a few words."""
    prompts, candidates = {p.id: p for p in pool.prompts}, {c.candidate_id: c for c in pool.candidates}
    aside = reliability.set_aside(reliability.decided(judgements, candidates), cfg.audit or 0)
    rows = [json.dumps(row, ensure_ascii=False) for row in reliability.blanks(aside, prompts, candidates)]
    (out / "audit.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    words = reliability.from_file(plugins.user_path(cfg.known)) if cfg.known else said or None
    if words is not None:
        keys = map(reliability.key_of, aside)
        rows = [json.dumps({"judged": key, "known": words[key]}) for key in keys if key in words]
        (out / reliability.KNOWN_WORDS).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    known = reliability.from_checks(aside, prompts, candidates) if words is None else words
    found = reliability.reliability(judgements, aside, known, prompts, candidates)
    note(out / "reliability.json", found)
    if "accuracy" not in found:
        return f"nothing is known of {len(aside)} audited"
    mean, low, high = found["accuracy"].values()
    return f"right in {mean:.0%} ({low:.0%} to {high:.0%}) of {found['known']} audited"


def admitted(judgements: Iterable[Judgement], pool: Pool, labeler: str) -> list[Judgement]:
    """Return the judgements in the order of the pool, with a missing one for every candidate without any.

    Raises:
        UserError: for a judgement of other candidates, or of one for the second time.
    """
    prompts = dict(zip(column(pool.candidates, "candidate_id"), column(pool.candidates, "prompt_id"), strict=True))
    found, scored = list[Judgement](), set[str]()
    for j in judgements:
        refuse(j, prompts, f"the labeler {labeler}")
        if j.candidate_id in scored:
            raise UserError(f"the labeler {labeler} judges {j.candidate_id} twice.")
        scored |= {j.candidate_id} if j.candidate_id else set()
        found.append(j)
    judged = scored | {str(of) for j in found for of in (j.a, j.b)}
    reason = "the labeler gave no judgement"
    silent = [(prompt, name) for name, prompt in prompts.items() if name not in judged]
    found += [Judgement(prompt, labeler, name, error=reason) for prompt, name in silent]
    turn = {prompt: i for i, prompt in enumerate(column(pool.prompts, "id"))}
    place = {name: i for i, name in enumerate(prompts)}
    return sorted(found, key=lambda j: (turn[j.prompt_id], *(place[name] for name in reliability.key_of(j))))


def refuse(j: Judgement, prompts: Mapping[str, str], labeler: str) -> None:
    """Raise UserError for what is no judgement of these candidates, each with its prompt."""
    if not isinstance(j, Judgement):
        raise UserError(f"{labeler} gives a {type(j).__name__}, which is no Judgement.")
    named = [j.candidate_id] if j.candidate_id is not None else [j.a, j.b]
    if any((name, j.prompt_id) not in prompts.items() for name in named):
        raise UserError(f"{labeler} judges {', '.join(map(str, named))}: no candidate of that prompt.")
    said = [name for name in ("score", "preference", "error") if vars(j)[name] is not None]
    if len(said) != 1:
        raise UserError(f"{labeler} gives {' and '.join(said) or 'nothing'}: one of score, preference and error.")
    if j.score is not None and not (isinstance(j.score, Real) and j.candidate_id and 0 <= j.score <= 1):
        raise UserError(f"{labeler} gives a score of {j.score}: a score is a number in [0, 1], of one candidate.")
    if j.preference is not None and (j.preference not in ("a", "b", "tie") or j.candidate_id or j.a == j.b):
        raise UserError(f"{labeler} prefers {j.preference!r} of {j.a} and {j.b}: a, b or tie, of two candidates.")


def units(judgements: Iterable[Judgement]) -> str:
    """Return what was judged: candidates one by one, or comparisons of two; judgements, where a labeler mixes both."""
    single = {j.candidate_id is not None for j in judgements}
    return "judgements" if len(single) > 1 else "candidates" if True in single else "comparisons"


def figures(lengths: Mapping[str, int], judgements: list[Judgement]) -> dict[str, Any]:
    """What every labelling tells of itself: scores, ties, and how often the longer of two answers is the better one,
    which is what length alone would order rightly. `lengths`: those of the candidates, by id."""
    scored = [j for j in judgements if j.score is not None]
    unequal = [gap > 0 for gap in longer_by(lengths, judgements) if gap]
    longer = float(np.mean(unequal)) if unequal else None
    length = f"; the longer answer is the better one in {longer:.1%} of {len(unequal)} comparisons" if unequal else ""
    found: dict[str, Any] = {"judgements": len(judgements), "longer_preferred": longer}
    if scored:
        scores = np.array([j.score for j in scored])
        tokens = np.array([lengths[str(j.candidate_id)] for j in scored])
        varied = scores.std() > 0 and tokens.std() > 0
        return found | {
            "pass_rate": float((scores == 1).mean()),
            "mean_score": float(scores.mean()),
            "scores": dict(sorted(Counter(f"{s:.2f}" for s in scores).items())),
            "length_correlation": float(np.corrcoef(scores, tokens)[0, 1]) if varied else None,
            "summary": f"{len(scored)} candidates judged: mean score {scores.mean():.3f}, "
            f"{(scores == 1).mean():.1%} at 1{length}",
        }
    if swapped := [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]:
        found["order_flips"] = 1 - float(np.mean(swapped))
    ties = sum(j.preference == "tie" for j in judgements)
    preferences = sum(j.preference in ("a", "b") for j in judgements)
    summary = f"{len(judgements)} comparisons: {preferences} preferences, {ties} ties{length}"
    return found | {"ties": ties, "summary": summary}


def longer_by(lengths: Mapping[str, int], judgements: Iterable[Judgement]) -> Iterator[int]:
    """Return by how many tokens the better answer is longer, for every two answers of a prompt that are told apart."""
    scored = defaultdict[str, list[tuple[float, int]]](list)
    for j in judgements:
        if j.preference in ("a", "b"):
            yield (lengths[str(j.a)] - lengths[str(j.b)]) * (1 if j.preference == "a" else -1)
        elif j.score is not None:
            scored[j.prompt_id].append((j.score, lengths[str(j.candidate_id)]))
    for answers in scored.values():
        for (score_a, tokens_a), (score_b, tokens_b) in combinations(answers, 2):
            if score_a != score_b:
                yield (tokens_a - tokens_b) * (1 if score_a > score_b else -1)
