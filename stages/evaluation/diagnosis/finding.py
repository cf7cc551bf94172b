"""A finding: a quantity measured on a run, its normal range, and the likely cause of a value outside the range.

The quantities' names, ranges, causes and advice are in finding.yaml."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isinf
from typing import Any

from stages.config.installation import read_beside
from stages.evaluation.diagnosis.evidence import Evidence
from stages.store.numbers import signed

SIDES = ("below", "above")  # of a range
OUT, FAR = 1, 2  # severities; a value in its range has 0
NUMBER = "{:z.2g}"  # the format of values that are neither shares nor counts
TEXTS: dict[str, dict[str, Any]] = read_beside(__file__)


def write_number(form: str, number: float) -> str:
    """Format a number for people: `5e-5`, `1,895`, `1e38`. Numbers below 100 can be typed as they are."""
    if form == NUMBER and 100 <= abs(number) < 1e6:
        form = "{:,.0f}"
    return signed(number, form).replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


@dataclass(frozen=True)
class Normal:
    """The normal range of a value, from `low` to `high`; infinite: no limit. At `floor` and below, or at `ceiling`
    and above, the value is far out and may by itself explain a failed run."""

    low: float = -inf
    high: float = inf
    floor: float = -inf
    ceiling: float = inf

    @classmethod
    def times(cls, low: float, high: float, factor: float = 3.0) -> "Normal":
        """Build a range whose floor and ceiling are outside it by a factor."""
        return cls(low, high, low / factor, high * factor)

    def severity(self, value: float) -> int:
        """Return 0 in the range, 1 (OUT) outside it, 2 (FAR) far outside."""
        if not (value < self.low or value > self.high):
            return 0
        return FAR if value <= self.floor or value >= self.ceiling else OUT

    def in_words(self, form: str) -> str:
        """Return the range as text: `25% to 75%`, `at least 300`."""
        low, high = (
            None if isinf(limit) else write_number(form, limit) for limit in (self.low, self.high)
        )
        return (
            f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"
        )


@dataclass(frozen=True)
class Cause:
    """The likely meaning of a value on one side of its range, as a clause, and advice with the keys to type."""

    clause: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """A measured `quantity`. `form` formats its value and limits; `detail` adds to the value; `source` gives the
    origin of the range; `below` and `above` are the causes on either side of it."""

    quantity: str
    value: float
    normal: Normal
    form: str
    source: str
    below: Cause | None = None
    above: Cause | None = None
    detail: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        value: float,
        detail: str = "",
        normal: Normal | None = None,
        **words: object,
    ) -> "Finding":
        """Build the finding of this name in finding.yaml. `normal`: its range in this run; `words` fill its braces."""
        text = TEXTS[name]
        causes = {
            side: Cause(*(each.format(**words) for each in text[side]))
            for side in SIDES
            if side in text
        }
        quantity, source = (text[key].format(**words) for key in ("quantity", "source"))
        return cls(
            quantity,
            value,
            normal or Normal(**text["normal"]),
            text["form"],
            source,
            **causes,
            detail=detail,
        )

    @property
    def severity(self) -> int:
        return self.normal.severity(self.value)

    @property
    def value_text(self) -> str:
        return write_number(self.form, self.value)

    @property
    def range_text(self) -> str:
        return self.normal.in_words(self.form)

    @property
    def cause(self) -> Cause | None:
        """The likely meaning of this value; None in its range."""
        return (
            self.below
            if self.value < self.normal.low
            else self.above
            if self.value > self.normal.high
            else None
        )


# None if the run has nothing to measure the quantity by
Measure = Callable[[Evidence], Finding | None]
