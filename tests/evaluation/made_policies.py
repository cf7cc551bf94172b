"""Policies whose answers are the reference answers of generated prompts, with known faults."""

import random
from collections.abc import Callable
from functools import cache

from stages.evaluation.measures import (
    PASSES,
    Measure,
    measure_answers,
)
from stages.evaluation.outcomes import tabulate
from stages.store.records import Candidate, Example
from stages.tasks.generator import generate

# the share of prompts that a policy passes, and of those that a seed answers otherwise
RIGHT = 0.6
NOISE = 0.05
WRONG = "I think that this is a good question."
MARGIN = 0.05
CONFIDENCE = 0.95
Fault = Callable[[Example, str], str]


@cache
def prompts() -> tuple[Example, ...]:
    return tuple(generate(7, {"test": 1120}, []))


def right_or_wrong(e: Example, text: str) -> str:
    return text


def broken(e: Example, text: str) -> str:
    """The answers of a policy that has unlearnt one task."""
    return WRONG if e.task == prompts()[0].task else text


def refuses(e: Example, text: str) -> str:
    return "I'm sorry, but I can't help with that."


@cache
def measured(seed: int, fault: Fault = right_or_wrong, ends: bool = True) -> list[Measure]:
    """Return the measures of a policy that answers a fixed part of the prompts rightly, but for the seed's noise."""
    answers = {}
    for e in prompts():
        knows = random.Random(e.id).random() < RIGHT
        differs = random.Random(f"{e.id}/{seed}").random() < NOISE
        answer = Candidate.from_text(
            e.id, fault(e, e.reference or "" if knows != differs else WRONG), "p", "hf", 12
        )
        answer.finish_reason = "stop" if ends else "length"
        answers[e.id] = answer
    table = tabulate([*prompts()], {"policy": answers})
    return measure_answers([table], {PASSES: table}, answers)
