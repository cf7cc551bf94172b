"""What code mends of an answer then passes, says what the model said, and is never of a kind that is held out."""

import random

import pytest

from stages.curation.mend import MENDS, mended
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
        found = mended(e, PLAIN)
        assert found is not None
        assert share_passed(e.checks, found) == 1
        own = [w for w in lower_words(found) if len(w) > 3 and w in lower_words(PLAIN)]
        assert len(own) >= 0.3 * len([w for w in lower_words(found) if len(w) > 3])


def test_what_passes_stays_and_what_cannot_be_mended_is_none() -> None:
    e = prompt("no_commas", 0)
    fine = "The moon pulls on the water and so the tides rise."
    assert mended(e, fine) == fine
    assert mended(e, fine + " It is") == fine, "a sentence that was cut off is no part of it"
    assert mended(e, "Nobody knows, really.") is None, "it is off topic"
    assert mended(prompt("address_by_name", 0), PLAIN) is None
    assert mended(prompt("bullets_exactly", 0), "The tides:\n1.\n2.\nThe moon pulls on the") is None, (
        "no whole sentence"
    )
