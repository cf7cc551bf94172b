"""An estimate with its bounds, and how it is written. Every interval comes from estimate.py."""

from dataclasses import dataclass

from stages.store.numbers import bound, points, signed


@dataclass
class Interval:
    mean: float
    low: float
    high: float

    def points(self) -> str:
        """`+15.2 points (+10.1 to +20.3)`"""
        return f"{points(self.mean)} points ({self.bounds()})"

    def share(self) -> str:
        """`61.0% (56.2% to 65.7%)`"""
        return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"

    def per(self, row: str) -> str:
        """`0.012 per pair (−0.003 to 0.027)`"""
        mean, low, high = (signed(number, "{:z.3g}") for number in (self.mean, self.low, self.high))
        return f"{mean} per {row} ({low} to {high})"

    def bounds(self) -> str:
        """The bounds in percentage points: `−7.1 to +3.4`."""
        return f"{bound(self.low)} to {bound(self.high)}"
