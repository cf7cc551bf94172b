"""Stage `label`: give every candidate a judgement, or a reason why it has none. Labeling is a node of its own because
judges may cost money: another pair strategy reuses the judgements."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.labels import Label
from stages.config.errors import UserError, name_block
from stages.evaluation import learnt_scores, reliability
from stages.evaluation.reliability import Key
from stages.formats.source_reading import count_reasons, quarantine, warn_unused_columns
from stages.labelers.labeler import Labeler, Pool, make_labeler
from stages.store import plugins
from stages.store.judged_pool import column
from stages.store.manifest import manifest_of
from stages.store.records import Candidate, Example, Judgement, Records, load, save, stream
from stages.store.sealed_json import write_note
from stages.store.workspace import StageDir


def run(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Run the stage; its messages name the settings as the user's configuration block does."""
    with name_block(cfg.name):
        return publish_judged_pool(cfg, inputs, out)


def publish_judged_pool(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish the judged pool: `prompts.parquet`, `candidates.parquet`, `judgements.parquet`. If rows of a file are
    unusable, `quarantine.jsonl` lists them. With `label.audit` there are also `audit.jsonl`, `reliability.json` and
    `known.jsonl`.
    Raise UserError if more judgements are missing than `max_failed` allows, or a judgement of user code is invalid."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # a killed attempt may have left one
    labeler = make_labeler(cfg, out)
    with plugins.explain_errors(cfg.own, "label.own", out.path):
        pool = labeler.pool(inputs)
        if earlier := inputs.get("judged"):
            pool, judgements = join_draws(earlier, pool, labeler)
        else:
            judgements = complete_judgements(labeler.judge_all(pool), pool, labeler.name)
    limit = cfg.max_failed if pool.prompts else 0.0
    for line in pool.notes:
        out.inform(line)
    quarantine(list(pool.bad), pool.rows, limit, out, "label.max_failed")
    for path, columns in pool.unused.items():
        warn_unused_columns(path, columns, out)
    failed = Counter(j.error for j in judgements if j.error)
    if failed.total() > cfg.max_failed * len(judgements):
        error, count = failed.most_common(1)[0]
        raise UserError(
            f"label.max_failed={cfg.max_failed:g}: {failed.total()} of {len(judgements)} {unit_name(judgements)} "
            f"could not be judged, most often ({count} times) because: {error}. Remove the cause, or raise the limit."
        )
    if failed:
        reason = failed.most_common(1)[0][0]
        out.warn(f"{failed.total()} of {len(judgements)} {unit_name(judgements)} have no judgement. Reason: {reason}.")
    save(out / "prompts.parquet", pool.prompts, Example)
    save(out / "candidates.parquet", pool.candidates, Candidate)
    save(out / "judgements.parquet", judgements, Judgement)
    lengths = dict(zip(column(pool.candidates, "candidate_id"), column(pool.candidates, "n_tokens"), strict=True))
    metrics = {"labeler": labeler.name, "failed": dict(failed), **figures(lengths, judgements)}
    if pool.notes:
        metrics["read"] = [*pool.notes]
    if pool.rows:
        metrics |= {"rows": pool.rows, "unusable": dict(count_reasons(pool.bad))}
        unusable = f" ({len(pool.bad)} of them unusable)" if pool.bad else ""
        metrics["summary"] = f"{pool.rows} rows{unusable}: {metrics['summary']}"
    if earlier:
        before = manifest_of(earlier)["metrics"]
        metrics["redrawn"] = redrawn = before.get("redrawn", 0) + metrics["judgements"] - before["judgements"]
        metrics["summary"] += f"; {redrawn} of them in further draws for prompts without a right candidate"
    if out.endpoint_calls:
        metrics["calls"] = out.endpoint_calls
    metrics |= labeler.figures()
    if labeler.learnt and judgements:
        curve, best_of_warning = learnt_scores.best_of_n(judgements, pool.prompts, pool.candidates)
        metrics |= curve
        for warning in filter(None, (best_of_warning, learnt_scores.length_warning(metrics["length_correlation"]))):
            out.warn(warning)
    if cfg.audit:
        metrics["summary"] += f"; {audit(cfg, pool, judgements, labeler.people_verdicts, out)}"
    return metrics


def join_draws(earlier: Path, draw: Pool, labeler: Labeler) -> tuple[Pool, list[Judgement]]:
    """Return the pool and the judgements of a label node, joined with a further draw, which may be empty."""
    judgements = load(earlier / "judgements.parquet", Judgement)
    if draw.prompts:
        judgements += labeler.judge_all(draw)
    candidates = [*stream(earlier / "candidates.parquet", Candidate), *draw.candidates]
    pool = Pool(Records(earlier / "prompts.parquet", Example), candidates)
    return pool, complete_judgements(judgements, pool, labeler.name)


def audit(cfg: Label, pool: Pool, judgements: list[Judgement], by_people: Mapping[Key, str], out: StageDir) -> str:
    """Audit a random sample of the judgements, and return the result as a clause of the summary. Writes `audit.jsonl`
    (the sample) and `reliability.json` (its agreement with known verdicts). The verdicts come from the file
    `label.known`, else from `by_people`, else from the prompts' checks. Verdicts from the file or from people are also
    written to `known.jsonl`."""
    prompts, candidates = {p.id: p for p in pool.prompts}, {c.candidate_id: c for c in pool.candidates}
    audited = reliability.draw_audit(reliability.countable(judgements, candidates), cfg.audit or 0)
    lines = [json.dumps(row, ensure_ascii=False) for row in reliability.audit_rows(audited, prompts, candidates)]
    (out / "audit.jsonl").write_text("".join(f"{row}\n" for row in lines), encoding="utf-8")
    verdicts = reliability.read_known_words(plugins.user_path(cfg.known)) if cfg.known else by_people or None
    if verdicts is not None:
        keys = map(reliability.key_of, audited)
        lines = [json.dumps({"judged": key, "known": verdicts[key]}) for key in keys if key in verdicts]
        (out / reliability.KNOWN_WORDS).write_text("".join(f"{row}\n" for row in lines), encoding="utf-8")
    truth = reliability.known_by_checks(audited, prompts, candidates) if verdicts is None else verdicts
    report = reliability.reliability(judgements, audited, truth, prompts, candidates)
    write_note(out / "reliability.json", report)
    if "accuracy" not in report:
        return f"accuracy unknown: {len(audited)} judgements audited, none with a known verdict"
    mean, low, high = report["accuracy"].values()
    return f"{mean:.0%} ({low:.0%} to {high:.0%}) of {report['known']} audited judgements are right"


def complete_judgements(judgements: Iterable[Judgement], pool: Pool, labeler: str) -> list[Judgement]:
    """Return the judgements in the order of the pool. A candidate that has none gets one with an error.
    Raise UserError if a judgement is invalid, or scores a candidate a second time."""
    prompt_ids = dict(zip(column(pool.candidates, "candidate_id"), column(pool.candidates, "prompt_id"), strict=True))
    complete, judged_ids = list[Judgement](), set[str]()
    for j in judgements:
        validate_judgement(j, prompt_ids, f"the labeler {labeler}")
        if j.candidate_id in judged_ids:
            raise UserError(f"the labeler {labeler} scores {j.candidate_id} twice. Yield one score per candidate.")
        judged_ids |= {j.candidate_id} if j.candidate_id else set()
        complete.append(j)
    judged = judged_ids | {str(name) for j in complete for name in (j.a, j.b)}
    reason = "the labeler gave no judgement"
    unjudged = [(prompt, name) for name, prompt in prompt_ids.items() if name not in judged]
    complete += [Judgement(prompt, labeler, name, error=reason) for prompt, name in unjudged]
    rank_of = {prompt: i for i, prompt in enumerate(column(pool.prompts, "id"))}
    place_of = {name: i for i, name in enumerate(prompt_ids)}
    return sorted(complete, key=lambda j: (rank_of[j.prompt_id], *(place_of[name] for name in reliability.key_of(j))))


def validate_judgement(j: Judgement, prompt_ids: Mapping[str, str], labeler: str) -> None:
    """Raise UserError if `j` is not a valid judgement. `prompt_ids`: each candidate's prompt, by candidate id."""
    if not isinstance(j, Judgement):
        raise UserError(f"{labeler} yields a {type(j).__name__}. Yield objects of the class Judgement.")
    candidate_ids = [j.candidate_id] if j.candidate_id is not None else [j.a, j.b]
    if any((name, j.prompt_id) not in prompt_ids.items() for name in candidate_ids):
        names = ", ".join(map(str, candidate_ids))
        raise UserError(f"{labeler} judges {names}: not a candidate of prompt {j.prompt_id}. Use the given ids.")
    outcomes = [name for name in ("score", "preference", "error") if vars(j)[name] is not None]
    if len(outcomes) != 1:
        fields = " and ".join(outcomes) or "nothing"
        raise UserError(f"{labeler} sets {fields} in a judgement. Set exactly one of score, preference and error.")
    if j.score is not None and not (isinstance(j.score, Real) and j.candidate_id and 0 <= j.score <= 1):
        raise UserError(f"{labeler} gives the score {j.score}. A score is a number from 0 to 1, of one candidate.")
    if j.preference is not None and (j.preference not in ("a", "b", "tie") or j.candidate_id or j.a == j.b):
        raise UserError(
            f"{labeler} gives the preference {j.preference!r} for {j.a} and {j.b}. A preference is a, b or tie, "
            "between two different candidates."
        )


def unit_name(judgements: Iterable[Judgement]) -> str:
    """Return the noun for the judged units: candidates, comparisons, or judgements if a labeler mixes both."""
    single = {j.candidate_id is not None for j in judgements}
    return "judgements" if len(single) > 1 else "candidates" if True in single else "comparisons"


def figures(lengths: Mapping[str, int], judgements: list[Judgement]) -> dict[str, Any]:
    """Return metrics of any labeler's judgements: scores, ties, and how often the longer of two answers is preferred.
    `lengths`: tokens of each candidate, by id."""
    scored = [j for j in judgements if j.score is not None]
    unequal = [gap > 0 for gap in length_gaps(lengths, judgements) if gap]
    longer = float(np.mean(unequal)) if unequal else None
    length_note = f"; the longer answer is preferred in {longer:.1%} of {len(unequal)} comparisons" if unequal else ""
    metrics: dict[str, Any] = {"judgements": len(judgements), "longer_preferred": longer}
    if scored:
        scores = np.array([j.score for j in scored])
        tokens = np.array([lengths[str(j.candidate_id)] for j in scored])
        varied = scores.std() > 0 and tokens.std() > 0
        return metrics | {
            "pass_rate": float((scores == 1).mean()),
            "mean_score": float(scores.mean()),
            "scores": dict(sorted(Counter(f"{s:.2f}" for s in scores).items())),
            "length_correlation": float(np.corrcoef(scores, tokens)[0, 1]) if varied else None,
            "summary": f"{len(scored)} candidates judged: mean score {scores.mean():.3f}, "
            f"{(scores == 1).mean():.1%} with the full score 1{length_note}",
        }
    if swapped := [j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]:
        metrics["order_flips"] = 1 - float(np.mean(swapped))
    ties = sum(j.preference == "tie" for j in judgements)
    preferences = sum(j.preference in ("a", "b") for j in judgements)
    summary = f"{len(judgements)} comparisons: {preferences} preferences, {ties} ties{length_note}"
    return metrics | {"ties": ties, "summary": summary}


def length_gaps(lengths: Mapping[str, int], judgements: Iterable[Judgement]) -> Iterator[int]:
    """Yield by how many tokens the better of two answers is longer, for all pairs of unequal answers to a prompt."""
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
