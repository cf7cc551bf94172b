"""The responses of a model to the questions of benchmarks, and their scores by prompt and metric."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from stages.store.records import Message
from stages.store.table_schema import Int32

LESS = " (less is better)"  # the end of such a metric's name


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
