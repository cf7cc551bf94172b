"""A finding: something measured of a run, where it is normal, and what a value outside of that may mean."""

from collections.abc import Callable
from dataclasses import dataclass

from stages.evaluation.diagnosis.evidence import Evidence
from stages.store.numbers import signed

OUT, FAR = 1, 2  # severities; 0: in its range
SHARE, COUNT, NUMBER = "{:.0%}", "{:.0f}", "{:z.2g}"  # how values are shown


def written(form: str, number: float) -> str:
    """The number in its form, for people: `5e-5`, `1,895`, `1e38`; one to type, as is a rate of 5e-5, has no other."""
    if form == NUMBER and 100 <= abs(number) < 1e6:
        form = "{:,.0f}"
    return signed(number, form).replace("e-0", "e-").replace("e+", "e")


@dataclass(frozen=True)
class Normal:
    """Where a value is normal: from `low` to `high`. Below `floor` or above `ceiling` it is far out: by itself it may
    be why a run did not help. None: no such limit."""

    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ceiling: float | None = None

    @classmethod
    def times(cls, low: float, high: float, factor: float = 3.0) -> "Normal":
        """Far out is what lies outside by this factor."""
        return cls(low, high, low / factor, high * factor)

    def below(self, value: float) -> bool:
        return self.low is not None and value < self.low

    def above(self, value: float) -> bool:
        return self.high is not None and value > self.high

    def severity(self, value: float) -> int:
        """0 in the range, 1 out of it, 2 far out."""
        if not (self.below(value) or self.above(value)):
            return 0
        beyond = (self.floor is not None and value <= self.floor) or (
            self.ceiling is not None and value >= self.ceiling
        )
        return FAR if beyond else OUT

    def told(self, form: str) -> str:
        """`25% to 75%`, `at least 300`."""
        low, high = (None if limit is None else written(form, limit) for limit in (self.low, self.high))
        if low and high:
            return f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}"


@dataclass(frozen=True)
class Cause:
    """What a value on one side of its range may mean, as a clause, and what to try, with the keys to type."""

    says: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """`form` shows value and limits. `detail` is what else belongs to the value, `source` where the range is from."""

    what: str
    value: float
    normal: Normal
    form: str
    source: str
    below: Cause | None = None
    above: Cause | None = None
    detail: str = ""

    @property
    def severity(self) -> int:
        return self.normal.severity(self.value)

    @property
    def shown(self) -> str:
        return written(self.form, self.value)

    @property
    def range(self) -> str:
        return self.normal.told(self.form)

    @property
    def cause(self) -> Cause | None:
        """What this value may mean; None in its range."""
        if self.normal.below(self.value):
            return self.below
        return self.above if self.normal.above(self.value) else None


Measure = Callable[[Evidence], Finding | None]  # None: this run has nothing to measure it by
