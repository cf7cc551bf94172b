"""Limits of keys, as the schema states them beside a key's type, and the check of all values against them."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from omegaconf import MISSING

from stages.config.errors import UserError, check_all, require_known
from stages.config.extras import EXTRAS
from stages.config.renamed import old_value_message

# the highest number of keys whose limit has none: nothing here has so many rows, tokens, seconds or processes
BILLION = 10**9
NEARLY = 1e-3  # of an epoch: less is a slip, and would be a step of another epoch


@dataclass(frozen=True)
class Limit:
    """The finite numbers from `low` to `high`. `open` excludes `low`, and `below` excludes `high`."""

    low: float
    high: float = BILLION
    open: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        is_excluded = (self.open and value == self.low) or (self.below and value == self.high)
        return math.isfinite(value) and self.low <= value <= self.high and not is_excluded

    def __str__(self) -> str:
        text = f"from {self.low:,}"
        if self.open:
            text = f"above {self.low:,}"
        if self.below:
            return f"{text} to below {self.high:,}"
        return f"{text} to {self.high:,}"

    @property
    def has_high(self) -> bool:
        """Whether the highest number means something to a user."""
        return self.high < BILLION


AMOUNT = Limit(0)  # of numbers whose field has none
# keys of a dataclass field's metadata
LIMIT = "limit"
ONE_OF = "one of"
ONLY_PIPELINE_SETS = "computed"
NOT_FINGERPRINTED = "neutral"
OF_EPOCHS = "epochs"
MISSING_EXTRA = "extra"
SEVERAL = "several"  # texts with commas between them


def limited(limit: Limit, default: Any = MISSING, neutral: bool = False) -> Any:
    """Return a field whose numbers must keep a limit. `neutral`: it is not part of the fingerprint."""
    metadata = {LIMIT: limit, NOT_FINGERPRINTED: neutral}
    if isinstance(default, list):
        return field(default_factory=partial(list, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def words(*accepted: str, default: Any = MISSING) -> Any:
    """Return a text field that accepts only these words."""
    return field(default=default, metadata={ONE_OF: accepted})


def several(default: Any) -> Any:
    """Return a text field that may hold several texts, as A,B,C."""
    return field(default=default, metadata={SEVERAL: True})


def computed(default: Any) -> Any:
    """Return a field that only the pipeline sets."""
    metadata = {ONLY_PIPELINE_SETS: default}
    if isinstance(default, dict):
        return field(default_factory=partial(dict, default), metadata=metadata)
    return field(default=default, metadata=metadata)


def neutral(make: Callable[[], Any]) -> Any:
    """Return a field that is not part of the fingerprint."""
    return field(default_factory=make, metadata={NOT_FINGERPRINTED: True})


def internal(default: Any = None) -> Any:
    """Return a field that only the pipeline sets, and that is not part of the fingerprint."""
    return field(default=default, metadata={ONLY_PIPELINE_SETS: default, NOT_FINGERPRINTED: True})


def of_extra(extra: str, key: Any) -> Any:
    """Return a field that only an extra reads. Without the extra no user can type it, and its value enters fingerprints
    all the same."""
    if extra in EXTRAS:
        return key
    metadata = {**key.metadata, MISSING_EXTRA: extra}
    return field(default=key.default, default_factory=key.default_factory, metadata=metadata)


def is_typable(key: Field[Any]) -> bool:
    """Return whether a user can type a field."""
    return key.metadata.keys().isdisjoint((ONLY_PIPELINE_SETS, MISSING_EXTRA))


def at_least(low: float, default: Any = MISSING, neutral: bool = False) -> Any:
    return limited(Limit(low), default, neutral)


def between(low: float, high: float, default: Any = MISSING) -> Any:
    return limited(Limit(low, high), default)


def positive(default: Any = MISSING) -> Any:
    return limited(Limit(0, open=True), default)


def number_of_epochs(default: Any = MISSING) -> Any:
    """Return a field for whole epochs and parts of one. A number that is nearly whole is refused."""
    metadata = {LIMIT: Limit(0, open=True), OF_EPOCHS: True}
    return field(default=default, metadata=metadata)


def share(default: Any = MISSING) -> Any:
    return between(0, 1, default)


def partial_share(default: Any = MISSING) -> Any:
    """Return a field for a share that is never the whole."""
    return limited(Limit(0, 1, below=True), default)


def random_seed(default: Any = MISSING) -> Any:
    """Return a field for a seed, from 0 to the highest number of 32 bits."""
    return between(0, 2**32 - 1, default)


def validate_block(block: Any, key_prefix: str = "") -> None:
    """Raise one UserError for all wrong values of a block and of the blocks inside it."""
    check_all(partial(validate_value, *each) for each in iterate_values(block, key_prefix))


def validate_value(name: str, key: Field[Any], value: Any) -> None:
    limit: Limit = key.metadata.get(LIMIT, AMOUNT)
    if ONLY_PIPELINE_SETS in key.metadata and value != key.metadata[ONLY_PIPELINE_SETS]:
        refuse_old_word(f"{name}={value}")
        raise UserError(f"{name}={value}: only the pipeline sets {name}. Leave it out.")
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{name}={value}: the value is empty. Leave {name} out.")
        if accepted := key.metadata.get(ONE_OF):
            require_word(name, value, accepted)
    elif isinstance(value, int | float) and not limit.holds(value):
        raise UserError(f"{name}={value}: the value must be {limit}.")
    elif OF_EPOCHS in key.metadata and is_nearly_whole(value):
        problem = f"{name}={value}: this is nearly {round(value)}, and would train one step more"
        raise UserError(f"{problem} or less. Type {name}={round(value)}.")


def require_word(key: str, value: str, accepted: Iterable[str]) -> None:
    """Raise UserError for a word that a key does not accept, with the word of today for one of an earlier version."""
    if value not in accepted:
        refuse_old_word(f"{key}={value}")
    require_known(key, [value], accepted)


def refuse_old_word(argument: str) -> None:
    """Raise UserError for an argument with a word of an earlier version."""
    message = old_value_message(argument)
    if message:
        raise UserError(message)


def is_nearly_whole(number: float | None) -> bool:
    """Return whether a number differs from the nearest whole one, from 1 on, by less than a slip."""
    if number is None or round(number) == 0:
        return False
    return 0 < abs(number - round(number)) < NEARLY


def iterate_values(block: Any, key_prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield every value of a block and of the blocks inside it, with its name (`sample.pool[0].n`) and its field."""
    for key in fields(block):
        name, value = f"{key_prefix}{key.name}", getattr(block, key.name)
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
