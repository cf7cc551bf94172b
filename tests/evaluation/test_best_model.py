"""The best of several models: the sentence about it, and how often chance alone passes for a difference."""

import numpy as np
import pytest

from stages.evaluation.best_model import Contender, compare_models, conclusion
from stages.evaluation.estimate import Means
from tests.evaluation.simulated import Sweep

PROMPTS = 300
TASKS = 30
FAMILIES = [str(i % TASKS) for i in range(PROMPTS)]
COUNTED = "300 validation prompts"


def draw_outcomes(rng: np.random.Generator, *rates: float, alike: float = 0.7) -> np.ndarray:
    """Draw which prompts models with these pass rates pass; on most prompts they share the same random number."""
    luck = rng.random((PROMPTS, 1))
    own = rng.random((PROMPTS, len(rates)))
    return (np.where(rng.random(own.shape) < alike, luck, own) < np.array(rates)).astype(float)


def conclude(outcomes: np.ndarray, *names: str) -> str:
    """Return the conclusion on SFT and settings, listed by rate, highest first."""
    order = sorted(range(len(names)), key=lambda i: -outcomes[:, i].mean())
    models = [Contender(names[i], float(outcomes[:, i].mean()), names[i] == "SFT") for i in order]
    return conclusion(models, COUNTED, compare_models(outcomes[:, order], FAMILIES))


def test_one_setting_is_judged_as_its_evaluation_judges_it() -> None:
    outcomes = draw_outcomes(np.random.default_rng(0), 0.4, 0.5)
    own = Means(outcomes, FAMILIES).difference(1, 0)
    among = compare_models(outcomes, FAMILIES)
    assert among.uncorrected(0, 1) == among.corrected(0, 1) == own
    three = compare_models(draw_outcomes(np.random.default_rng(0), 0.4, 0.5, 0.45), FAMILIES)
    alone = three.uncorrected(0, 1)
    corrected = three.corrected(0, 1)
    assert corrected.low < alone.low < alone.high < corrected.high


@pytest.mark.extended
def test_the_best_of_many_that_are_alike_is_no_more_than_chance() -> None:
    """Prompts without families, whose intervals have exactly their nominal coverage."""
    rng = np.random.default_rng(1)
    alone = 0
    corrected = 0
    for _ in range(60):
        outcomes = draw_outcomes(rng, *[0.4] * 13, alike=0.0)
        best = 1 + int(outcomes[:, 1:].mean(0).argmax())
        alone += compare_models(outcomes[:, [0, best]], [""] * PROMPTS).corrected(0, 1).low > 0
        corrected += compare_models(outcomes, [""] * PROMPTS).corrected(0, best).low > 0
    assert corrected <= 5, "at most 2.5% in the long run"
    assert alone > 4 + corrected, "the uncorrected interval of the best finds differences too often"


@pytest.mark.extended
def test_a_better_setting_among_seven_is_found_more_often_than_not() -> None:
    """One of 7 settings is +8 points better on 28 tasks of 11 prompts; resampling prompts twice found 22 to 34%."""
    sweep = Sweep(28, 11, (0.08, *(0.0,) * 6))
    rng = np.random.default_rng(7)
    families = [str(i // 11) for i in range(28 * 11)]
    better = 0
    for _ in range(100):
        better += compare_models(sweep.table(rng), families).corrected(0, 1).low > 0
    assert better >= 70, "88% of 1,000 tables"


def test_a_setting_that_is_better_is_found_among_many() -> None:
    outcomes = draw_outcomes(np.random.default_rng(3), 0.4, 0.42, 0.65, 0.38)
    text = conclude(outcomes, "SFT", "a", "b", "c")
    assert text.startswith(f"b wins: it passes {outcomes[:, 2].mean():.1%} of {COUNTED}, SFT ")


def test_where_sft_is_above_all_settings_none_is_called_better() -> None:
    text = conclude(draw_outcomes(np.random.default_rng(5), 0.6, 0.3, 0.2), "SFT", "a", "b")
    assert text.startswith("No setting is better than SFT")
    same = np.tile(draw_outcomes(np.random.default_rng(6), 0.5), 2)
    assert conclude(same, "SFT", "a").startswith(
        f"No winner: {COUNTED} cannot tell a and SFT apart"
    )


@pytest.mark.parametrize(
    ("rates", "names", "beginning"),
    [
        ((0.4, 0.41, 0.42, 0.4), "abcd", "No winner: {} cannot tell these 4 settings apart"),
        (
            (0.4, 0.41, 0.42),
            ("SFT", "a", "b"),
            "No winner: {} cannot tell these 2 settings and SFT",
        ),
        ((0.5, 0.51, 0.2), "abc", "No winner: {} cannot tell 2 of the 3 settings apart"),
        ((0.7, 0.4, 0.3), "abc", "a wins: it passes "),
    ],
)
def test_it_begins_with_the_winner_or_with_how_many_prompts_tell_nothing_apart(
    rates: tuple[float, ...], names: str, beginning: str
) -> None:
    outcomes = draw_outcomes(np.random.default_rng(7), *rates)
    text = conclude(outcomes, *names)
    assert text.startswith(beginning.format(COUNTED))
    if len(set(rates)) == 3 and max(rates) == 0.7:
        comparison = compare_models(outcomes, FAMILIES)
        assert f"{comparison.corrected(1, 0).points()} over b" in text, "by how much it wins"
