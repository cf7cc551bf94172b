"""Limits that stand beside a key's type in the schema, and what a value outside them is told."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from stages.config.errors import Errors, UserError, require_known


@dataclass(frozen=True)
class Limit:
    """Finite numbers from `low` to `high`. `open`: `low` itself is too little; `below`: `high` itself is too much.
    `told` says so in an error."""

    low: float
    requirement: str
    high: float = float("inf")
    open: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        enough = value > self.low if self.open else value >= self.low
        not_too_much = value < self.high if self.below else value <= self.high
        return math.isfinite(value) and enough and not_too_much


LIMIT, ONE_OF, COMPUTED, NEUTRAL = "limit", "one of", "computed", "neutral"  # in a field's metadata


def limited(limit: Limit, default: Any = MISSING) -> Any:
    """A key that must keep a limit, whose value stands in YAML or is given. None and words (auto) are left to its
    type."""
    return field(default=default, metadata={LIMIT: limit})


def words(*accepted: str, default: Any = MISSING) -> Any:
    """A key that takes one of these words, where no type says so."""
    return field(default=default, metadata={ONE_OF: accepted})


def computed(default: Any) -> Any:
    """A key that the pipeline fills in. Whatever a user set there would be lost."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={COMPUTED: default})
    return field(default=default, metadata={COMPUTED: default})


def neutral(make: Callable[[], Any]) -> Any:
    """A key outside `runtime` that cannot change a result either: it stays out of the fingerprint."""
    return field(default_factory=make, metadata={NEUTRAL: True})


def setting_name() -> Any:
    """What the pipeline's own block is called on the command line, for errors: it stays out of the fingerprint."""
    return field(default=None, metadata={COMPUTED: None, NEUTRAL: True})


def positive(high: float = float("inf"), default: Any = MISSING) -> Any:
    most = "finite" if math.isinf(high) else f"at most {high:,}"
    return limited(Limit(0, f"must be positive and {most}", high, open=True), default)


def between(low: float, high: float, default: Any = MISSING) -> Any:
    """The bounds of sense: more would be a slip, and take all memory or for ever."""
    return limited(Limit(low, f"must be from {low:,} to {high:,}", high), default)


def random_seed(default: Any = MISSING) -> Any:
    """What NumPy takes as a seed, and torch too."""
    return limited(Limit(0, "must be from 0 to 4294967295", 2**32 - 1), default)


def reading_bound(low: int, high: int) -> Any:
    """A bound that ends a stage and changes nothing of what it makes: it stays out of the fingerprint. Null: the
    reader's own."""
    limit = Limit(low, f"must be from {low:,} to {high:,}", high)
    return field(default=None, metadata={LIMIT: limit, NEUTRAL: True})


def share(default: Any = MISSING) -> Any:
    return limited(Limit(0, "is a share between 0 and 1", high=1), default)


def limits_of(key: Field[Any]) -> Limit | None:
    limit: Limit | None = key.metadata.get(LIMIT)
    return limit


def validate_block(block: Any, prefix: str = "") -> None:
    """Raise UserError for the values of a block, and of those inside it, that do not keep their limits, are not a
    word that their key knows, or are empty."""
    errors = Errors()
    for name, key, value in iterate_values(block, prefix):
        with errors:
            validate_value(name, key, value)
    errors.raise_all()


def validate_value(name: str, key: Field[Any], value: Any) -> None:
    limit = limits_of(key)
    if COMPUTED in key.metadata and value != key.metadata[COMPUTED]:
        raise UserError(f"{name}={value}: the pipeline sets it itself; leave it out.")
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{name} is empty: give it a value, or leave it out.")
        if accepted := key.metadata.get(ONE_OF):
            require_known(name, [value], accepted)
    elif limit and isinstance(value, int | float) and not limit.holds(value):
        raise UserError(f"{name} {limit.requirement}, got {value}.")


def iterate_values(block: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Every value of a block and of those inside it, with its name and its field; of a list or a mapping, every
    element that is a block."""
    for key in fields(block):
        name, value = f"{prefix}{key.name}", getattr(block, key.name)
        for place, item in numbered_items(value):
            if is_dataclass(item):
                yield from iterate_values(item, f"{name}{place}.")
            else:
                yield name, key, item


def numbered_items(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, list):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, dict) and any(map(is_dataclass, value.values())):
        return [(f".{name}", item) for name, item in value.items()]
    return [("", value)]
