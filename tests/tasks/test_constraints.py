"""Every kind of constraint against answers by hand, and against what no answer is."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.tasks.checks import CHECKS
from stages.tasks.constraint import CONSTRAINTS, known_constraints

BY_HAND = Path(__file__).parent / "answers"
EACH = 6  # answers of either sort, at least

KINDS = sorted(known_constraints())
MOST = 150  # above every count in an answer by hand
NAMED = {"word", "words", "phrase", "sentence", "name", "marker", "tag", "labels", "keys", "text", "one"}
NO_WORD = "zyxgloop"
FORBID = ("avoid_words",)
LONG = 3_000
ODD = [mark * LONG for mark in ("\n", "a, ", "* ", "[", '"', "<<", "1. ", "```", "word. ")] + ["١٢٣ ﷽ 🏳️‍🌈 ﬁ"]
SLOW = 1.0  # CPU-seconds for all of them


def drawn(kind: str) -> dict[str, Any]:
    return CONSTRAINTS[kind].draw(random.Random(0), "Describe a lighthouse.")


COUNTING = [kind for kind in KINDS if "count" in drawn(kind)]
NAMING = [kind for kind in KINDS if NAMED & drawn(kind).keys()]


def by_hand() -> dict[str, dict[str, Any]]:
    return {
        kind: told
        for file in sorted(BY_HAND.glob("*.yaml"))
        for kind, told in yaml.safe_load(file.read_text()).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_checker_tells_good_answers_from_near_misses(kind: str) -> None:
    told, holds = by_hand()[kind], CONSTRAINTS[kind].holds
    assert len(set(told["good"])) >= EACH
    assert len(set(told["near_miss"])) >= EACH
    params = told.get("params", {})
    assert [a for a in told["good"] if not holds(a.strip(), **params)] == []
    assert [a for a in told["near_miss"] if holds(a.strip(), **params)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_has_its_parameters(kind: str) -> None:
    known = CONSTRAINTS[kind]
    params = known.draw(random.Random(0), "Describe a lighthouse.")
    assert params.keys() == by_hand()[kind].get("params", {}).keys()
    assert len(known.wordings) >= 4
    for i in range(20):
        assert "{" not in known.word(random.Random(i), params)
    assert kind not in CHECKS


@pytest.mark.parametrize("kind", COUNTING)
def test_a_count_decides_as_the_wording_says(kind: str) -> None:
    """Exactly so many: of all counts one holds. At least, or at most: they hold up to a point, or from one on."""
    told, holds = by_hand()[kind], CONSTRAINTS[kind].holds
    for answer in told["good"]:
        held = [holds(answer.strip(), **told["params"] | {"count": count}) for count in range(MOST)]
        alike = held in (sorted(held), sorted(held, reverse=True)) and (not all(held) or "at_most" in kind)
        assert sum(held) == 1 or alike, answer


@pytest.mark.parametrize("kind", NAMING)
def test_what_is_named_is_what_has_to_be_there(kind: str) -> None:
    told, holds = by_hand()[kind], CONSTRAINTS[kind].holds
    name = min(NAMED & told["params"].keys())
    other: Any = [NO_WORD] if isinstance(told["params"][name], list) else NO_WORD
    held = [holds(answer.strip(), **told["params"] | {name: other}) for answer in told["good"]]
    assert held == [kind in FORBID] * len(held)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_makes_a_checker_fail_or_linger(kind: str) -> None:
    params = by_hand()[kind].get("params", {})
    started = time.process_time()
    for text in ODD:
        assert CONSTRAINTS[kind].kept(text.strip(), **params) in (True, False)
    assert time.process_time() - started < SLOW
    assert not CONSTRAINTS[kind].kept("", **params)
