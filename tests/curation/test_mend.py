"""Mended answers pass their checks, contain the model's words, and are only of trained kinds."""

import random

import pytest

from stages.curation.mend import MENDS, mend_answer
from stages.store.records import Example
from stages.store.text_units import lower_words
from stages.tasks.checks import share_passed
from stages.tasks.constraint import Side, known_constraints
from stages.tasks.open_requests import Request, example

ASKED = Request("explain", "Explain how tides work.", (("tide",),))
PLAIN = (
    "The moon pulls on the water, and so the tides rise. When it has passed, the sea falls again. Twice a day this "
    "happens almost everywhere. Sailors know the hours by heart, and so do birds. Strong winds make the tides higher. "
    "A harbour keeps a table of them."
)


def prompt(kind: str, seed: int) -> Example:
    rng = random.Random(seed)
    return example("open_sft", ASKED, [known_constraints()[kind]], rng)


def test_only_trained_kinds_are_mended() -> None:
    assert {known_constraints()[kind].side for kind in MENDS} == {Side.train}


@pytest.mark.parametrize("kind", sorted(MENDS))
def test_a_mended_answer_passes_and_is_the_models_own(kind: str) -> None:
    for seed in range(12):
        e = prompt(kind, seed)
        answer = mend_answer(e, PLAIN)
        assert answer is not None
        assert share_passed(e.checks, answer) == 1
        own = [w for w in lower_words(answer) if len(w) > 3 and w in lower_words(PLAIN)]
        assert len(own) >= 0.3 * len([w for w in lower_words(answer) if len(w) > 3])
