"""Stage `label`: give every candidate a judgement, or a reason why it has none. Labeling is a node of its own because
judges may cost money: another pair strategy reuses the judgements."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.labels import Judge, Label, OwnLabeler
from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.evaluation import learnt_scores, reliability
from stages.evaluation.labelling import length_gaps
from stages.evaluation.reliability import Key
from stages.formats.source_reading import count_reasons, quarantine, warn_unused_columns
from stages.labelers.labeler import Pool, require_candidates, validate_judgement
from stages.labelers.making import make_labeler
from stages.store import plugins
from stages.store.judged_pool import column, sort_on_disk, split_by_prompt
from stages.store.records import Candidate, Example, Judgement, Records, save
from stages.store.sealed_json import write_note
from stages.store.user_columns import read_user_columns
from stages.store.workspace import SCRATCH, StageDir


def run(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish the judged pool: `prompts.parquet`, `candidates.parquet`, `judgements.parquet`. If rows of a file are
    unusable, `quarantine.jsonl` lists them. With `label.audit` there are also `audit.jsonl`, `reliability.json` and
    `known.jsonl`.
    Raise UserError if more judgements are missing than `max_failed` allows, or a judgement of user code is invalid."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # a killed attempt may have left one
    labeler = make_labeler(cfg, out)
    # the others take seconds, or look at the time after each shard
    if isinstance(cfg, Judge | OwnLabeler):
        labeler.allowance = out.allowance
    own = cfg.own if isinstance(cfg, OwnLabeler) else Own()
    figures = Figures()
    with plugins.explain_errors(own, cfg.own_key, out.path):
        pool = labeler.pool(inputs)
        if isinstance(cfg, OwnLabeler) and labeler.reads_columns:
            columns = read_user_columns(inputs.values(), {*column(pool.prompts, "id")})
            pool = pool._replace(columns=columns)
        completed = complete_judgements(
            labeler.judge_all(pool),
            pool,
            labeler.name,
            out / SCRATCH / "judgements",
            labeler.compares,
        )
        save(out / "judgements.parquet", figures.count(completed), Judgement)
    report_preference_file(cfg, pool, out)
    report_missing_judgements(cfg, figures, pool, out)
    save(out / "prompts.parquet", pool.prompts, Example)
    save(out / "candidates.parquet", pool.candidates, Candidate)
    judgements = Records(out / "judgements.parquet", Judgement)
    metrics = {"labeler": labeler.name, **figures.metrics(), **labeler.figures()}
    if pool.rows:
        metrics["read"] = [*pool.notes]
        metrics["rows"] = pool.rows
        metrics["unusable"] = dict(count_reasons(pool.bad))
    if out.endpoint_calls:
        metrics["calls"] = out.endpoint_calls
    if labeler.learnt and figures.judgements:
        curve, best_of_warning = learnt_scores.best_of_n(judgements, pool.prompts, pool.candidates)
        metrics |= curve
        length_warning = learnt_scores.length_warning(metrics.get("length_correlation"))
        for warning in filter(None, (best_of_warning, length_warning)):
            out.warn(warning)
    if cfg.audit:
        metrics["summary"] += (
            f"; {audit_sample(cfg, pool, judgements, labeler.people_verdicts, out)}"
        )
    return metrics


def report_preference_file(cfg: Label, pool: Pool, out: StageDir) -> None:
    """Report what was read of a file of preferences. Raise UserError if too many of its rows are unusable."""
    for line in pool.notes:
        out.inform(line)
    allowed_share = cfg.max_failed if pool.prompts else 0.0
    quarantine(list(pool.bad), pool.rows, allowed_share, out, f"{cfg.block}.max_failed")
    for path, columns in pool.unused.items():
        warn_unused_columns(path, columns, out)


def report_missing_judgements(cfg: Label, figures: "Figures", pool: Pool, out: StageDir) -> None:
    """Warn of missing judgements. Raise UserError if they are more than `max_failed` allows."""
    missing = figures.count_by_error.total()
    if not missing:
        return
    [(error, times)] = figures.count_by_error.most_common(1)
    opening = next(p.opening for p in pool.prompts if p.id == figures.first_prompt_by_error[error])
    problem = (
        f"{missing} of {figures.judgements} could not be judged, most often ({times} times) because: {error} "
        f'(first for the prompt "{opening}")'
    )
    if missing > cfg.max_failed * figures.judgements:
        raise UserError(
            f"{cfg.block}.max_failed={cfg.max_failed:g}: {problem}. Remove the cause, or raise the limit."
        )
    out.warn(f"{problem}.")


def audit_sample(
    cfg: Label,
    pool: Pool,
    judgements: Records[Judgement],
    people_verdicts: Mapping[Key, str],
    out: StageDir,
) -> str:
    """Audit a random sample of the judgements, and return the result as a clause of the summary. Writes `audit.jsonl`
    (the sample) and `reliability.json` (its agreement with known verdicts). The verdicts come from the file
    `label.known`, else from `people_verdicts`, else from the prompts' checks. Those that do not come from checks are
    also written to `known.jsonl`."""
    prompts = {p.id: p for p in pool.prompts}
    candidates = {c.candidate_id: c for c in pool.candidates}
    audited = reliability.draw_audit(reliability.countable(judgements, candidates), cfg.audit or 0)
    write_json_lines(out / "audit.jsonl", reliability.audit_rows(audited, prompts, candidates))
    verdicts = people_verdicts
    if cfg.known:
        verdicts = reliability.read_known_words(plugins.user_path(cfg.known), f"{cfg.block}.known")
    if cfg.known or people_verdicts:
        known_keys = [key for key in map(reliability.key_of, audited) if key in verdicts]
        rows = [{"judged": key, "known": verdicts[key]} for key in known_keys]
        write_json_lines(out / reliability.KNOWN_WORDS, rows)
    else:
        verdicts = reliability.known_by_checks(audited, prompts, candidates)
    report = reliability.reliability(judgements, audited, verdicts, prompts, candidates)
    write_note(out / "reliability.json", report)
    if "accuracy" not in report:
        return f"{len(audited)} judgements audited, none with a known verdict"
    accuracy = report["accuracy"]["mean"]
    return f"{accuracy:.0%} of {report['known']} audited judgements are right"


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON, one a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def complete_judgements(
    judgements: Iterable[Judgement],
    pool: Pool,
    labeler: str,
    sorting_folder: Path,
    compares: bool = False,
) -> Iterator[tuple[dict[str, int], list[Judgement]]]:
    """Yield each prompt's judgements in the order of the pool, with its candidates' lengths in tokens by id. Missing
    judgements get an error, unless the labeler `compares`: it was never asked about a candidate that no comparison
    shows. The judgements may arrive in any order, and are first sorted in `sorting_folder`.
    Raise UserError if a judgement is invalid, or scores a candidate a second time."""
    place_of_prompt = {prompt_id: i for i, prompt_id in enumerate(column(pool.prompts, "id"))}
    valid = (validate_judgement(j, place_of_prompt, f"the labeler {labeler}") for j in judgements)
    in_order = sort_on_disk(
        valid, Judgement, lambda j: place_of_prompt[j.prompt_id], sorting_folder
    )
    by_prompt = zip(
        place_of_prompt,
        pool.lengths_by_prompt(),
        split_by_prompt(in_order, place_of_prompt),
        strict=True,
    )
    for prompt_id, token_counts, judged in by_prompt:
        require_candidates(judged, prompt_id, token_counts, labeler)
        require_one_score(judged, labeler)
        if not compares:  # else some candidates may be in no comparison
            judged_ids = {candidate_id for j in judged for candidate_id in reliability.key_of(j)}
            for candidate_id in token_counts:
                if candidate_id not in judged_ids:
                    error = "the labeler gave no judgement"
                    judged.append(Judgement(prompt_id, labeler, candidate_id, error=error))
        place_of = {candidate_id: i for i, candidate_id in enumerate(token_counts)}
        judged.sort(
            key=lambda j: [place_of[candidate_id] for candidate_id in reliability.key_of(j)]
        )
        yield token_counts, judged


def require_one_score(judged: list[Judgement], labeler: str) -> None:
    """Raise UserError if a labeler scores a candidate of a prompt twice."""
    counts = Counter(j.candidate_id for j in judged if j.candidate_id)
    for candidate_id, count in counts.items():
        if count > 1:
            raise UserError(
                f"the labeler {labeler} scores {candidate_id} twice. Yield one score per candidate."
            )


class Figures:
    """Figures of any labeler's judgements, counted prompt by prompt: scores, ties, and how often the longer of two
    answers is preferred. Each score has its candidate's length in `scored_lengths`. `first_prompt_by_error` has prompt
    ids. `longer_is_better` counts comparisons of answers of unequal lengths, and `swap_agrees` those judged in both
    orders."""

    def __init__(self) -> None:
        self.judgements = 0
        self.ties = 0
        self.scores = array("d")
        self.scored_lengths = array("q")
        self.count_by_score = Counter[str]()
        self.count_by_error = Counter[str]()
        self.first_prompt_by_error = dict[str, str]()
        self.longer_is_better = Counter[bool]()
        self.swap_agrees = Counter[bool]()

    def count(
        self, by_prompt: Iterable[tuple[dict[str, int], list[Judgement]]]
    ) -> Iterator[Judgement]:
        """Yield the judgements, and count them. `by_prompt`: the lengths of candidates by id, and the judgements."""
        for token_counts, judgements in by_prompt:
            self.longer_is_better.update(
                gap > 0 for gap in length_gaps(token_counts, judgements) if gap
            )
            for j in judgements:
                self.judgements += 1
                self.ties += j.preference == "tie"
                if j.score is not None:
                    self.scores.append(j.score)
                    self.scored_lengths.append(token_counts[str(j.candidate_id)])
                    self.count_by_score[f"{j.score:.2f}"] += 1
                if j.error is not None:
                    reason = j.error or "no reason given"
                    self.count_by_error[reason] += 1
                    self.first_prompt_by_error.setdefault(reason, j.prompt_id)
                if j.order_swapped_agrees is not None:
                    self.swap_agrees[j.order_swapped_agrees] += 1
                yield j

    def metrics(self) -> dict[str, Any]:
        """Return the figures, and a summary of them."""
        metrics: dict[str, Any] = {
            "failed": dict(self.count_by_error),
            "judgements": self.judgements,
            "longer_preferred": None,
        }
        if self.scores:
            metrics |= self.score_metrics()
            summary = (
                f"{len(self.scores)} candidates judged: mean score {metrics['mean_score']:.3f}, "
            )
            summary += f"{metrics['pass_rate']:.1%} with the full score 1"
        else:
            metrics["ties"] = self.ties
            summary = f"{self.judgements} comparisons, {self.ties} of them ties"
            if self.swap_agrees:
                metrics["order_flips"] = self.swap_agrees[False] / self.swap_agrees.total()
        if self.longer_is_better:
            compared = self.longer_is_better.total()
            share = self.longer_is_better[True] / compared
            metrics["longer_preferred"] = share
            summary += f"; the longer answer is preferred in {share:.1%} of {compared} comparisons"
        return metrics | {"summary": summary}

    def score_metrics(self) -> dict[str, Any]:
        scores = np.array(self.scores)
        tokens = np.array(self.scored_lengths)
        correlation = None
        if scores.std() > 0 and tokens.std() > 0:
            correlation = float(np.corrcoef(scores, tokens)[0, 1])
        return {
            "pass_rate": float((scores == 1).mean()),
            "mean_score": float(scores.mean()),
            "scores": dict(sorted(self.count_by_score.items())),
            "length_correlation": correlation,
        }
