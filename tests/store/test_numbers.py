"""Tests of numbers in texts for people."""

import pytest

from stages.store.numbers import bound, signed


@pytest.mark.parametrize(
    ("number", "form", "text"),
    [
        (-1.7, "{:+z.1f}", "−1.7"),
        (1.7, "{:+z.1f}", "+1.7"),
        (-0.04, "{:+z.1f}", "+0.0"),
        (-0.0, "{:z.3g}", "0"),
        (-81.0, "{:z.0f} points", "−81 points"),
        (-5e-5, "{:z.2g}", "−5e-05"),
        (-1895.0, "{:,.0f}", "−1,895"),
        (float("-inf"), "{:z.3g}", "−inf"),
    ],
)
def test_below_zero_stands_a_minus_sign_and_no_hyphen(number: float, form: str, text: str) -> None:
    assert signed(number, form) == text


def test_a_bound_is_told_on_its_side_of_zero() -> None:
    """Check the sign of a bound near zero: `+0.0 to +4.8` was once reported as no measurable change."""
    assert (bound(0.086), bound(-0.0001), bound(0.0), bound(0.0001)) == (
        "+8.6",
        "−0.0",
        "+0.0",
        "+0.0",
    )
