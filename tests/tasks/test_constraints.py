"""Every kind of constraint, against handwritten answers."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.tasks.checks import CHECKS
from stages.tasks.constraint import known_constraints
from stages.tasks.final_numbers import last_number, sole_number

BY_HAND = Path(__file__).parent / "answers"
EACH = 6  # smallest number of good answers, and of near misses

CONSTRAINTS = known_constraints()
KINDS = sorted(CONSTRAINTS)


def drawn(kind: str) -> dict[str, Any]:
    return CONSTRAINTS[kind].draw(random.Random(0), "Describe a lighthouse.")


ANSWERS: dict[str, dict[str, Any]] = {
    kind: answers
    for file in sorted(BY_HAND.glob("*.yaml"))
    for kind, answers in yaml.load(
        file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    ).items()
}


def test_a_checker_separates_good_answers_from_near_misses() -> None:
    wrong = []
    for kind in KINDS:
        answers = ANSWERS[kind]
        holds = CONSTRAINTS[kind].holds
        params = answers.get("params", {})
        for sort in ("good", "near_miss"):
            if len({*answers[sort]}) < EACH:
                wrong.append(f"{kind}: fewer than {EACH} {sort}")
            for i, answer in enumerate(answers[sort], 1):
                if holds(answer.strip(), **params) != (sort == "good"):
                    wrong.append(f"{kind}: {sort} {i}")
    assert not wrong


def test_the_last_number_has_its_own_sign_and_no_hyphen() -> None:
    texts = {
        "pages 10-12": 12,
        "COVID-19": 19,
        "x=-5": -5,
        "x = \u22125": -5,
        "3 - 4 = -1": -1,
        "1,200 in all": 1200,
        "It is .5": 0.5,
        "It costs $7.": 7,
        "2 + 2 = 4, as 3 + 1\n#### 4": 4,
        r"So \boxed{12}, not 13.": 12,
        "3/4": None,
        "at 12:30": None,
        r"\boxed{\frac{3}{4}}": None,
    }
    assert {text: last_number(text) for text in texts} == texts


def test_a_reference_is_one_number_or_none() -> None:
    one = {"72": 72, "It is 5.": 5, "1,200": 1200, "3 + 4 = 7\n#### 7": 7, r"\boxed{-2.5}": -2.5}
    assert {text: sole_number(text) for text in one} == one
    several = ["3/4", "2:3", "3e5", "$1 234", "[1, 5]", "x = 2, y = 3", "2024-05-01"]
    none = ["1.234,56", "12 or 13", r"\frac{3}{4}", r"\boxed{\frac{3}{4}}", "no solution"]
    assert not any(sole_number(text) for text in several + none)


@pytest.mark.parametrize("text", ["+", "C++", ":)", "Yes."])
def test_a_label_is_found_but_not_in_an_empty_answer(text: str) -> None:
    assert CHECKS["label"](text, text=text) and not CHECKS["label"]("", text=text)


def test_every_wording_has_its_parameters() -> None:
    wrong = []
    for kind in KINDS:
        constraint = CONSTRAINTS[kind]
        params = drawn(kind)
        if params.keys() != ANSWERS[kind].get("params", {}).keys():
            wrong.append(f"{kind}: other parameters than {[*params]}")
        if len(constraint.wordings) < 4 or kind in CHECKS:
            wrong.append(f"{kind}: few wordings, or the name of a check")
        wordings = {constraint.word(random.Random(i), params) for i in range(20)}
        wrong += [f"{kind}: {wording}" for wording in wordings if "{" in wording]
    assert not wrong
