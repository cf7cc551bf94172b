"""The measures of a policy's answers, prompt by prompt. `stage=gate` compares two runs by these rows alone.

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


@dataclass
class Measure:
    """A `measure` of one answer, text or comparison. `unit`: the id of what was asked, so that equal units of two runs
    were asked and checked alike. `group`: the task or set that the unit belongs to."""

    measure: str
    unit: str
    group: str
    value: float


def unit_of(prompt: Example) -> str:
    """Return the id of a prompt together with its checks."""
    return content_id(prompt.id, [vars(check) for check in prompt.checks])


def rows_of(measure: str, prompts: Sequence[Example], values: Iterable[float]) -> list[Measure]:
    """Return the rows of one measure. `values`: one by prompt."""
    return [
        Measure(measure, unit_of(e), e.task, float(value))
        for e, value in zip(prompts, values, strict=True)
    ]


def measure_answers(
    tables: Sequence[Table], checked: Mapping[str, Table], answers: Mapping[str, Candidate]
) -> list[Measure]:
    """Return endings, loops and lengths of the policy's answers, and its passes in checked tables, by measure. The
    phrasings of one request, which are not independent, are left out."""
    prompts = [
        *{e.id: e for table in tables for e in table.prompts if e.group != "rephrased"}.values()
    ]
    candidates = [answers[e.id] for e in prompts]
    rows = rows_of(ENDINGS, prompts, (a.finish_reason == "stop" for a in candidates))
    rows += rows_of(LOOPLESS, prompts, (not is_repetitive(a.answer) for a in candidates))
    rows += rows_of(LENGTH, prompts, (len(a.answer) for a in candidates))
    for name, table in checked.items():
        rows += rows_of(name, table.prompts, table.passed[:, table.roles.index("policy")])
    return rows
