"""Constraints on the form of an open answer. A kind of constraint has a checker, wordings, and parameters that are
drawn. The modules of `constraints/` hold the kinds, by area."""

import importlib
import pkgutil
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from stages.config.installation import read_beside
from stages.tasks import constraints as modules
from stages.tasks.words import listed, split_wordings

WHOLE = "whole"  # the claim of a kind that shapes the whole answer and allows no other kind
# draws the parameters of a constraint for a request
Draw = Callable[[random.Random, str], dict[str, Any]]

# The split in which a kind is used
Side = StrEnum("Side", "train validation test")


@dataclass(frozen=True)
class Constraint:
    """A kind of constraint. name: the kind's name, and its check's. area: its subject. side: the same for all prompts.
    wordings: sentences that ask for it, with slots for the parameters. claims: the aspects of an answer that it
    decides; kinds with a common claim may contradict each other. holds: whether a stripped answer keeps it."""

    name: str
    area: str
    side: Side
    wordings: tuple[str, ...]
    claims: frozenset[str]
    draw: Draw
    holds: Callable[..., bool]

    def is_satisfied(self, answer: str, **params: Any) -> bool:
        """Return whether a stripped answer satisfies the constraint. An empty answer never does."""
        return bool(answer) and self.holds(answer, **params)

    def word(self, rng: random.Random, params: dict[str, Any]) -> str:
        """Return a sentence that asks for the constraint."""
        return rng.choice(self.wordings).format(
            **{name: format_value(value) for name, value in params.items()}
        )


@cache
def known_constraints() -> dict[str, Constraint]:
    """Return every kind by name. The YAML file beside a module of `constraints/` lists its kinds by area. The module
    has the checker of each, in `CHECKS` or as a function. `DRAWS` draws parameters that do not come from `options`."""
    kinds = dict[str, Constraint]()
    for each in pkgutil.iter_modules(modules.__path__):
        module = importlib.import_module(f"{modules.__name__}.{each.name}")
        checkers, draws = vars(module) | getattr(module, "CHECKS", {}), getattr(module, "DRAWS", {})
        table = read_beside(str(module.__file__))
        areas = [area for area in table if area not in ("words", "patterns")]
        for area, name, kind in ((key, *item) for key in areas for item in table[key].items()):
            draw = draws.get(name) or choice_of(kind.get("options", {}))
            wordings = split_wordings(kind["wordings"], "\n")
            claims = frozenset(kind["claims"].split())
            kinds[name] = Constraint(
                name, area, Side(kind["side"]), wordings, claims, draw, checkers[name]
            )
    return dict(sorted(kinds.items()))


def choice_of(options: Mapping[str, Sequence[Any]]) -> Draw:
    """Return a function that draws one of the options of each parameter."""
    return lambda rng, request: {name: rng.choice(choices) for name, choices in options.items()}


def may_clash(first: Constraint, second: Constraint) -> bool:
    """Return whether two kinds may contradict or repeat each other."""
    return WHOLE in first.claims | second.claims or bool(first.claims & second.claims)


def format_value(value: Any) -> str:
    """Return a parameter as text for a wording: lists as `"a", "b" and "c"`."""
    return listed([f'"{v}"' for v in value]) if isinstance(value, list) else str(value)
