"""Benchmarks: the scores of every model on the same prompts, their rates, and paired differences with intervals."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation import claims
from stages.evaluation.estimate import Means
from stages.evaluation.extra_sections import Section
from stages.evaluation.measures import Measure
from stages.evaluation.outcomes import means_and_differences
from stages.evaluation.results import ByName, Intervals, Results
from stages.extras.benchmarks import INSTRUMENT, PREFIX
from stages.store.records import Message, content_id, load
from stages.store.table_schema import Int32
from stages.store.typed_json import FLAT, decode
from stages.store.workspace import StageDir

LESS = " (less is better)"  # the end of such a metric's name
SECTION = "benchmarks"  # of an evaluation's results


@dataclass
class Response:
    """A question of a benchmark with the model's response: the greedy `text` of at most `max_new_tokens` tokens, or
    of a choice (0) the log-prob in nats, and whether each of its tokens is the likeliest one."""

    id: str
    messages: list[Message]
    prompt_ids: list[Int32]
    completion_ids: list[Int32]
    text: str
    max_new_tokens: Int32
    logprob: float = 0.0
    is_greedy: bool = True

    @property
    def is_choice(self) -> bool:
        return not self.max_new_tokens

    @property
    def answer(self) -> str | tuple[float, bool]:
        """The response in the form that the engine reads."""
        return (self.logprob, self.is_greedy) if self.is_choice else self.text


@dataclass
class SampleScore:
    """A model's score in [0, 1] for a prompt (`doc_hash`) of a task, which is a part of the `benchmark` that was asked
    for. `questions`: the ids of its responses."""

    task: str
    benchmark: str
    metric: str
    doc_hash: str
    doc_id: int
    questions: list[str]
    score: float


@dataclass(frozen=True)
class BenchmarkRow(ByName):
    """A metric of a task: the rate of every model and paired differences, on prompts that all were asked."""

    task: str
    metric: str
    prompts: int
    intervals: Intervals = field(metadata=FLAT)


def read_rows(results: Results) -> list[BenchmarkRow]:
    """Return the rows of an evaluation's benchmarks, [] without any."""
    return decode(list[BenchmarkRow], results.sections.get(SECTION, []))


def mean_metrics(task: Mapping[str, Any]) -> dict[str, bool]:
    """Return by metric of a task whether it is the mean of a score in [0, 1] per prompt, as the engine's own figure
    confirms. Others, such as a corpus's BLEU, have no interval and no paired difference."""
    scores = defaultdict[str, list[Any]](list)
    for sample in task["samples"]:
        for metric, score in sample["scores"].items():
            scores[metric].append(math.nan if score is None else score)
    return {
        metric: all(0 <= score <= 1 for score in of_metric)
        and math.isclose(fmean(of_metric), task["figures"].get(metric, math.nan), abs_tol=1e-9)
        for metric, of_metric in scores.items()
    }


def score_samples(
    task: Mapping[str, Any], is_mean: Mapping[str, bool], responses: Mapping[str, Response]
) -> list[SampleScore]:
    """Return the scores of a task by metrics that are means, for prompts whose questions all have responses."""
    names = {
        metric: metric + LESS * (metric.partition(",")[0] in task["less_is_better"])
        for metric in is_mean
    }
    return [
        SampleScore(
            task["task"],
            task["benchmark"],
            names[metric],
            sample["doc_hash"],
            sample["doc_id"],
            ids,
            score,
        )
        for sample in task["samples"]
        if responses.keys() >= {*(ids := sample["questions"])}
        for metric, score in sample["scores"].items()
        if is_mean[metric]
    ]


def measure_section(cfg: Eval, inputs: Mapping[str, Path], out: StageDir) -> Section:
    """Return a row for each task and metric, with every model's rate and paired differences on prompts that all were
    asked, and the scores of each model. Both are empty if the evaluation has no benchmarks."""
    measured = list[Measure]()
    roles = [role for role in cfg.models if f"{PREFIX}{role}" in inputs]
    scores = defaultdict[tuple[str, str], dict[int, dict[str, float]]](lambda: defaultdict(dict))
    for role in roles:
        for s in load(inputs[f"{PREFIX}{role}"] / "samples.parquet", SampleScore):
            scores[s.task, s.metric][s.doc_id][role] = s.score
            unit = content_id(s.task, s.doc_id, s.doc_hash, cfg.instruments[INSTRUMENT])
            value = 1 - s.score if s.metric.endswith(LESS) else s.score
            measured.append(Measure(f"{s.benchmark} {s.metric}", unit, s.task, value, role))
    rows = list[BenchmarkRow]()
    for (task, metric), by_prompt in scores.items():
        if table := [
            [row[role] for role in roles] for row in by_prompt.values() if len(row) == len(roles)
        ]:
            means = means_and_differences(
                Means(np.array(table), [task] * len(table)), roles, cfg.confidence
            )
            rows.append(BenchmarkRow(task, metric, len(table), means))
    return Section(SECTION, rows, measured)


def sentence(
    rows: Sequence[BenchmarkRow], difference: str, titles: Mapping[str, str], note: str = ""
) -> str:
    """Return in how many rows a difference is above or below 0; "" without rows. `titles`: of the differences; `note`: why
    nothing can be said, or ''."""
    if rows and note:
        return f"{note.capitalize()} what changed in {len(rows)} rates."
    above, below = claims.count(claims.difference(row[difference]) for row in rows)
    counts = f"{titles[difference]} is above 0 in {above} and below 0 in {below} of {len(rows)} rates, by interval."
    return counts if rows else ""
