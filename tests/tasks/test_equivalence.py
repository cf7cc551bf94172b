"""Answers that are equal to their references as mathematics, and references that are no expression."""

import pytest

from stages.tasks.checks import CHECKS, incomparable


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("0.75", "3/4", True),
        ("1/4", "3/4", False),
        (r"It is $\frac{3}{4}$.", "0.75", True),
        (r"So \boxed{0.5} it is.", r"\frac{1}{2}", True),
        ("x^2 + 1", "1+x^2", True),
        ("The answer is 72 apples.", "5 + 67 = 72\n#### 72", True),
        ("I do not know.", "72", False),
        ("", "72", False),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
    ],
)
def test_an_answer_is_compared_by_its_value(answer: str, reference: str, equal: bool) -> None:
    assert CHECKS["math"](answer, text=reference) == equal


@pytest.mark.parametrize(
    ("check", "reference", "is_comparable"),
    [
        ("math", r"\frac{3}{4}", True),
        ("math", "12 or 13", False),
        ("math", "no solution", False),
        ("number", "72", True),
        ("number", "3/4", False),
        ("label", "no solution", True),
    ],
)
def test_a_reference_that_cannot_be_compared_is_told(
    check: str, reference: str, is_comparable: bool
) -> None:
    assert bool(incomparable(check, reference)) is not is_comparable
