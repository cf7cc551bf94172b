"""Stage `label`: give every candidate a judgement, or a reason why it has none. Labeling is a node of its own because
judges may cost money: another pair strategy reuses the judgements."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.config.blocks.labels import Label, OwnLabeler
from stages.config.blocks.models import Own
from stages.config.errors import UserError, name_block
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
from stages.store.workspace import SCRATCH, StageDir


def run(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Run the stage; its messages name the settings as the user's configuration block does."""
    with name_block(cfg.block):
        return publish_judged_pool(cfg, inputs, out)


def publish_judged_pool(cfg: Label, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish the judged pool: `prompts.parquet`, `candidates.parquet`, `judgements.parquet`. If rows of a file are
    unusable, `quarantine.jsonl` lists them. With `label.audit` there are also `audit.jsonl`, `reliability.json` and
    `known.jsonl`.
    Raise UserError if more judgements are missing than `max_failed` allows, or a judgement of user code is invalid."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # a killed attempt may have left one
    labeler = make_labeler(cfg, out)
    own = cfg.own if isinstance(cfg, OwnLabeler) else Own()
    with plugins.explain_errors(own, "label.own", out.path):
        pool = labeler.pool(inputs)
        figures, judgements = Figures(), labeler.judge_all(pool)
        complete = complete_judgements(
            judgements, pool, labeler.name, out / SCRATCH / "judgements", labeler.compares
        )
        save(out / "judgements.parquet", figures.count(complete), Judgement)
    limit = cfg.max_failed if pool.prompts else 0.0
    for line in pool.notes:
        out.inform(line)
    quarantine(list(pool.bad), pool.rows, limit, out, "label.max_failed")
    for path, columns in pool.unused.items():
        warn_unused_columns(path, columns, out)
    failed, count, unit = figures.failed, figures.judgements, figures.unit
    if failed:
        [(error, times)] = failed.most_common(1)
        row = next(p.opening for p in pool.prompts if p.id == figures.first_failed[error])
        reason = f'{error} (first for the prompt "{row}")'
        if failed.total() > cfg.max_failed * count:
            raise UserError(
                f"label.max_failed={cfg.max_failed:g}: {failed.total()} of {count} {unit} could not be judged, "
                f"most often ({times} times) because: {reason}. Remove the cause, or raise the limit."
            )
        out.warn(f"{failed.total()} of {count} {unit} have no judgement. Reason: {reason}.")
    save(out / "prompts.parquet", pool.prompts, Example)
    save(out / "candidates.parquet", pool.candidates, Candidate)
    stored = Records(out / "judgements.parquet", Judgement)
    metrics = {"labeler": labeler.name, "failed": dict(failed), **figures.metrics()}
    if pool.notes:
        metrics["read"] = [*pool.notes]
    if pool.rows:
        metrics |= {"rows": pool.rows, "unusable": dict(count_reasons(pool.bad))}
        unusable = f" ({len(pool.bad)} of them unusable)" if pool.bad else ""
        metrics["summary"] = f"{pool.rows} rows{unusable}: {metrics['summary']}"
    if out.endpoint_calls:
        metrics["calls"] = out.endpoint_calls
    metrics |= labeler.figures()
    if labeler.learnt and count:
        curve, best_of_warning = learnt_scores.best_of_n(stored, pool.prompts, pool.candidates)
        metrics |= curve
        length_warning = learnt_scores.length_warning(metrics.get("length_correlation"))
        for warning in filter(None, (best_of_warning, length_warning)):
            out.warn(warning)
    if cfg.audit:
        metrics["summary"] += f"; {audit(cfg, pool, stored, labeler.people_verdicts, out)}"
    return metrics


def audit(
    cfg: Label,
    pool: Pool,
    judgements: Records[Judgement],
    by_people: Mapping[Key, str],
    out: StageDir,
) -> str:
    """Audit a random sample of the judgements, and return the result as a clause of the summary. Writes `audit.jsonl`
    (the sample) and `reliability.json` (its agreement with known verdicts). The verdicts come from the file
    `label.known`, else from `by_people`, else from the prompts' checks. Verdicts from the file or from people are also
    written to `known.jsonl`."""
    prompts = {p.id: p for p in pool.prompts}
    candidates = {c.candidate_id: c for c in pool.candidates}
    audited = reliability.draw_audit(reliability.countable(judgements, candidates), cfg.audit or 0)
    lines = [
        json.dumps(row, ensure_ascii=False)
        for row in reliability.audit_rows(audited, prompts, candidates)
    ]
    (out / "audit.jsonl").write_text("".join(f"{row}\n" for row in lines), encoding="utf-8")
    verdicts = (
        reliability.read_known_words(plugins.user_path(cfg.known))
        if cfg.known
        else by_people or None
    )
    if verdicts is not None:
        keys = map(reliability.key_of, audited)
        lines = [
            json.dumps({"judged": key, "known": verdicts[key]}) for key in keys if key in verdicts
        ]
        (out / reliability.KNOWN_WORDS).write_text(
            "".join(f"{row}\n" for row in lines), encoding="utf-8"
        )
    truth = (
        reliability.known_by_checks(audited, prompts, candidates) if verdicts is None else verdicts
    )
    report = reliability.reliability(judgements, audited, truth, prompts, candidates)
    write_note(out / "reliability.json", report)
    if "accuracy" not in report:
        return f"accuracy unknown: {len(audited)} judgements audited, none with a known verdict"
    mean, low, high = report["accuracy"].values()
    return f"{mean:.0%} ({low:.0%} to {high:.0%}) of {report['known']} audited judgements are right"


def complete_judgements(
    judgements: Iterable[Judgement], pool: Pool, labeler: str, folder: Path, compares: bool = False
) -> Iterator[tuple[dict[str, int], list[Judgement]]]:
    """Yield each prompt's judgements in the order of the pool, with its candidates' lengths in tokens by id. Missing
    judgements get an error, unless the labeler `compares`: it was never asked about a candidate that no comparison
    shows. The judgements may arrive in any order, and are first sorted in `folder`.
    Raise UserError if a judgement is invalid, or scores a candidate a second time."""
    rank_of = {prompt: i for i, prompt in enumerate(column(pool.prompts, "id"))}
    valid = (validate_judgement(j, rank_of, f"the labeler {labeler}") for j in judgements)
    in_order = sort_on_disk(valid, Judgement, lambda j: rank_of[j.prompt_id], folder)
    by_prompt = zip(
        rank_of, pool.lengths_by_prompt(), split_by_prompt(in_order, rank_of), strict=True
    )
    for prompt, lengths, judged in by_prompt:
        require_candidates(judged, prompt, lengths, labeler)
        judged_ids = set[str]()
        for j in judged:
            if j.candidate_id in judged_ids:
                raise UserError(
                    f"the labeler {labeler} scores {j.candidate_id} twice. Yield one score per candidate."
                )
            judged_ids |= {j.candidate_id} if j.candidate_id else set()
        judged_ids |= {name for j in judged for name in reliability.key_of(j)}
        reason = "the labeler gave no judgement"
        missing = [] if compares else [name for name in lengths if name not in judged_ids]
        judged += [Judgement(prompt, labeler, name, error=reason) for name in missing]
        yield lengths, sorted(judged, key=lambda j: [*map([*lengths].index, reliability.key_of(j))])


class Figures:
    """Figures of any labeler's judgements, counted prompt by prompt: scores, ties, and how often the longer of two
    answers is preferred. `scores` and `tokens` belong together. `failed` counts errors, and `first_failed` has the id of
    the first prompt with each. `longer` counts comparisons of answers of unequal lengths by whether the longer one is
    better."""

    def __init__(self) -> None:
        self.judgements, self.scores, self.tokens = 0, array("d"), array("q")
        self.failed, self.preferences, self.single = Counter[str](), Counter[str](), Counter[bool]()
        self.first_failed = dict[str, str]()
        self.longer, self.swapped, self.by_score = Counter[bool](), Counter[bool](), Counter[str]()

    def count(
        self, by_prompt: Iterable[tuple[dict[str, int], list[Judgement]]]
    ) -> Iterator[Judgement]:
        """Yield the judgements, and count them. `by_prompt`: the lengths of candidates by id, and the judgements."""
        for lengths, judgements in by_prompt:
            self.longer.update(gap > 0 for gap in length_gaps(lengths, judgements) if gap)
            for j in judgements:
                self.single[j.candidate_id is not None] += 1
                if j.score is not None:
                    self.scores.append(j.score)
                    self.tokens.append(lengths[str(j.candidate_id)])
                    self.by_score[f"{j.score:.2f}"] += 1
                if j.error is not None:
                    reason = j.error or "no reason given"
                    self.failed[reason] += 1
                    self.first_failed.setdefault(reason, j.prompt_id)
                self.preferences.update([j.preference] if j.preference else ())
                self.swapped.update(
                    [j.order_swapped_agrees] if j.order_swapped_agrees is not None else ()
                )
            self.judgements += len(judgements)
            yield from judgements

    @property
    def unit(self) -> str:
        """The noun for the judged units: candidates, comparisons, or judgements if a labeler mixes both."""
        return (
            "judgements"
            if len(self.single) > 1
            else "candidates"
            if self.single[True]
            else "comparisons"
        )

    def metrics(self) -> dict[str, Any]:
        compared = self.longer.total()
        longer = self.longer[True] / compared if compared else None
        length_note = (
            f"; the longer answer is preferred in {longer:.1%} of {compared} comparisons"
            if compared
            else ""
        )
        metrics: dict[str, Any] = {"judgements": self.judgements, "longer_preferred": longer}
        if self.scores:
            scores, tokens = np.array(self.scores), np.array(self.tokens)
            varied = scores.std() > 0 and tokens.std() > 0
            return metrics | {
                "pass_rate": float((scores == 1).mean()),
                "mean_score": float(scores.mean()),
                "scores": dict(sorted(self.by_score.items())),
                "length_correlation": float(np.corrcoef(scores, tokens)[0, 1]) if varied else None,
                "summary": f"{len(scores)} candidates judged: mean score {scores.mean():.3f}, "
                f"{(scores == 1).mean():.1%} with the full score 1{length_note}",
            }
        if swapped := self.swapped.total():
            metrics["order_flips"] = 1 - self.swapped[True] / swapped
        ties, preferences = self.preferences["tie"], self.preferences["a"] + self.preferences["b"]
        summary = (
            f"{self.judgements} comparisons: {preferences} preferences, {ties} ties{length_note}"
        )
        return metrics | {"ties": ties, "summary": summary}
