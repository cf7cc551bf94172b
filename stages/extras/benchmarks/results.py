"""Benchmarks: the rates of every model on the same prompts, and paired differences with intervals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation import claims
from stages.evaluation.estimate import Means
from stages.evaluation.extra_sections import Section
from stages.evaluation.measures import Measure
from stages.evaluation.outcomes import means_and_differences
from stages.evaluation.results import ByName, Intervals, Results
from stages.extras.benchmarks import INSTRUMENT, PREFIX
from stages.extras.benchmarks.responses import LESS, SampleScore
from stages.store.records import content_id, load
from stages.store.typed_json import FLAT, decode
from stages.store.workspace import StageDir

SECTION = "benchmarks"  # of an evaluation's results


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
