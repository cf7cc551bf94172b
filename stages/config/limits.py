"""Limits that stand beside a key's type in the schema, and what a value outside them is told."""

import math
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from stages.config.errors import UserError


@dataclass(frozen=True)
class Limit:
    """Finite numbers from `low` to `high`; `open`: `low` itself is too little. `told` says so in an error."""

    low: float
    told: str
    high: float = float("inf")
    open: bool = False

    def holds(self, value: float) -> bool:
        enough = value > self.low if self.open else value >= self.low
        return math.isfinite(value) and enough and value <= self.high


LIMIT = "limit"  # in a field's metadata


def limited(limit: Limit, default: Any = MISSING) -> Any:
    """A key that must keep a limit, whose value stands in YAML or is given. None and words (auto) are left to its
    type."""
    return field(default=default, metadata={LIMIT: limit})


def positive() -> Any:
    return limited(Limit(0, "must be positive", open=True))


def at_least(low: float, default: Any = MISSING) -> Any:
    return limited(Limit(low, f"must be at least {low:g}"), default)


def finite() -> Any:
    return limited(Limit(float("-inf"), "must be a finite number"))


def share() -> Any:
    return limited(Limit(0, "is a share between 0 and 1", high=1))


def limits_of(key: Field[Any]) -> Limit | None:
    found: Limit | None = key.metadata.get(LIMIT)
    return found


def refuse(block: Any, prefix: str = "") -> None:
    """Raise UserError for the first value of a block, or of one inside it, that does not keep its limit."""
    for name, limit, value in limited_values(block, prefix):
        if not limit.holds(value):
            raise UserError(f"{name} {limit.told}, got {value}.")


def limited_values(block: Any, prefix: str) -> Iterator[tuple[str, Limit, float]]:
    for key in fields(block):
        value = getattr(block, key.name)
        if is_dataclass(value):
            yield from limited_values(value, f"{prefix}{key.name}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from limited_values(item, f"{prefix}{key.name}[{i}].")
        elif limit := limits_of(key):
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float):
                    yield f"{prefix}{key.name}", limit, number
