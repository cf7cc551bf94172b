"""What a request may ask of an answer whatever the answer says: kinds of constraint, each a checker with a parameter
that is drawn and several wordings. A module of `constraints/` is an area of kinds."""

import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from stages.store.records import Check
from stages.tasks import constraints as areas

WHOLE = "whole"  # the claim of a kind that shapes all of the answer: it stands alone
Draw = Callable[[random.Random, str], dict[str, Any]]  # the parameters of a constraint on a request


class Side(StrEnum):
    """Where a kind is asked for. `aside`: nowhere, as the embedded start weights keep it in less than 5% or more than
    80% of 40 answers, so that a test of it would tell little (`python -m tests.bench.kinds side=test`)."""

    train = "train"
    validation = "validation"
    test = "test"
    aside = "aside"


@dataclass(frozen=True)
class Constraint:
    """A kind of constraint.

    name: of the kind, and of its check.
    side: a kind is on one side, whatever the prompt.
    wordings: the ways to ask for it, with the parameters as slots.
    claims: what of an answer it decides. Two constraints that claim the same might contradict each other.
    holds: whether a stripped answer that is not empty keeps it, given the parameters.
    """

    name: str
    area: str
    side: Side
    wordings: tuple[str, ...]
    claims: frozenset[str]
    draw: Draw
    holds: Callable[..., bool]

    def kept(self, answer: str, **params: Any) -> bool:
        """Whether a stripped answer keeps it. One that says nothing keeps no constraint."""
        return bool(answer) and self.holds(answer, **params)

    def check(self, params: dict[str, Any]) -> Check:
        return Check(self.name, params)

    def word(self, rng: random.Random, params: dict[str, Any]) -> str:
        """A sentence that asks for it."""
        return rng.choice(self.wordings).format(**{name: shown(value) for name, value in params.items()})


CONSTRAINTS: dict[str, Constraint] = {}


class Worded(NamedTuple):
    """A checker with the wordings of what it checks."""

    holds: Callable[..., bool]
    wordings: tuple[str, ...]


def worded(wordings: str) -> Callable[[Callable[..., bool]], Worded]:
    """Give the decorated checker its wordings: one per line, each a whole sentence; " | " for a line break."""
    forms = tuple(line.strip().replace(" | ", "\n") for line in wordings.strip().splitlines())
    return lambda holds: Worded(holds, forms)


def constraint(
    side: Side, claims: str, draw: Draw = lambda rng, request: {}
) -> Callable[[Worded], Callable[..., bool]]:
    """Register the decorated checker, which is worded, as a kind. `claims` are words, several with spaces between."""

    def register(kind: Worded) -> Callable[..., bool]:
        name, area = kind.holds.__name__, kind.holds.__module__.rpartition(".")[2]
        CONSTRAINTS[name] = Constraint(name, area, side, kind.wordings, frozenset(claims.split()), draw, kind.holds)
        return kind.holds

    return register


def count_of(*options: int) -> Draw:
    """Draw one of these as the `count` of a constraint, whatever the request."""
    return lambda rng, request: {"count": rng.choice(options)}


def known_constraints() -> dict[str, Constraint]:
    """Every kind, by name, from the modules in `constraints/`."""
    for module in pkgutil.iter_modules(areas.__path__):
        importlib.import_module(f"{areas.__name__}.{module.name}")
    return dict(sorted(CONSTRAINTS.items()))


def clash(one: Constraint, other: Constraint) -> bool:
    """Whether the two may contradict each other, or say the same."""
    return WHOLE in one.claims | other.claims or bool(one.claims & other.claims)


def shown(value: Any) -> str:
    """A parameter as a wording has it: lists as `"a", "b" and "c"`."""
    if not isinstance(value, list):
        return str(value)
    quoted = [f'"{v}"' for v in value]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
