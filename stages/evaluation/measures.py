"""The measures of each model's answers, prompt by prompt. `stage=gate` compares two runs, or two models of one run, by
these rows alone.

More is better, except for LENGTH. All measures are shares from 0 to 1, except LENGTH and the log-prob of a text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.curation.answer_rules import is_repetitive
from stages.evaluation.outcomes import Table
from stages.store.records import Candidate, Example, content_id

PASSES = "passes all checks"
FAVOURED = "better answers of held-out labels favoured"
ENDINGS = "answers that end"
LOOPLESS = "answers without a loop"
LENGTH = "characters of an answer"
FILE = "measures.parquet"
POLICY = "policy"  # the role of a run's own model


@dataclass
class Measure:
    """A `measure` of one answer, text or comparison. `unit`: the id of what was asked, so that equal units of two runs
    were asked and checked alike. `group`: the task or set that the unit belongs to. `role`: of the model."""

    measure: str
    unit: str
    group: str
    value: float
    role: str = POLICY


def unit_of(prompt: Example) -> str:
    """Return the id of a prompt together with its checks."""
    return content_id(prompt.id, [vars(check) for check in prompt.checks])


def rows_of(
    measure: str, prompts: Sequence[Example], values: Iterable[float], role: str = POLICY
) -> list[Measure]:
    """Return the rows of one measure of one model. `values`: one by prompt."""
    return [
        Measure(measure, unit_of(e), e.task, float(value), role)
        for e, value in zip(prompts, values, strict=True)
    ]


def measure_answers(
    tables: Sequence[Table],
    checked: Mapping[str, Table],
    answers: Mapping[str, Candidate],
    role: str = POLICY,
) -> list[Measure]:
    """Return endings, loops and lengths of a model's answers, and its passes in checked tables, by measure. The
    phrasings of one request, which are not independent, are left out."""
    prompts = [
        *{e.id: e for table in tables for e in table.prompts if e.group != "rephrased"}.values()
    ]
    candidates = [answers[e.id] for e in prompts]
    rows = rows_of(ENDINGS, prompts, (a.finish_reason == "stop" for a in candidates), role)
    rows += rows_of(LOOPLESS, prompts, (not is_repetitive(a.answer) for a in candidates), role)
    rows += rows_of(LENGTH, prompts, (len(a.answer) for a in candidates), role)
    for name, table in checked.items():
        rows += rows_of(name, table.prompts, table.passed[:, table.roles.index(role)], role)
    return rows
