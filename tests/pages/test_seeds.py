"""Several seeds of one recipe: each figure by seed, and what is said of other seeds."""

from typing import Any

import pytest

from stages.evaluation.estimate import over_seeds
from stages.pages.seeds import OverSeeds, SeedRun, summary
from tests.evaluation.made_results import Bounds, learnt, results

MODELS = {"sft": "SFT", "policy": "DPO", "control": "Control"}
PAIRS = 500


def of_shares(*shares: float, **fields: Any) -> OverSeeds | None:
    """Return the summary of seeds in which the policy favours these shares of held-out pairs."""
    runs = list[SeedRun]()
    for seed, share in enumerate(shares):
        bounds: Bounds = (share, share - 0.04, share + 0.04)
        pairs = learnt({"policy": bounds}, **fields)
        of_seed = results(models=MODELS, learnt=pairs, gives_verdict=["learnt"])
        runs.append(SeedRun(seed, "eval", str(seed), of_seed))
    return summary(runs, {}, 0.95)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((0.60, 0.62, 0.58), "DPO favours the better answer"),
        ((0.40, 0.38, 0.42), "DPO favours the worse answer"),
        ((0.90, 0.45, 0.60), "does not measurably favour"),
        ((0.60, 0.70), "does not measurably favour"),
    ],
)
def test_seeds_that_differ_say_less_than_the_pairs_of_one(
    shares: tuple[float, ...], says: str
) -> None:
    over = of_shares(*shares)
    assert over is not None
    assert says in over.headline
    by_seed = over.learnt["ratio"]["policy"]
    assert by_seed.values == [*shares]
    assert by_seed.interval == over_seeds([*shares], 1 / PAIRS, lowest=0.0)
    assert f"{by_seed.interval.low:.0%} to {by_seed.interval.high:.0%}" in over.headline
    assert over.headline in over.sentence


def test_nothing_is_said_of_other_seeds_where_nothing_can_be_said_of_one() -> None:
    assert of_shares(0.7) is None
    for fields in ({"note": "too few to say"}, {"moved": {"policy": 1e-6}}):
        over = of_shares(0.60, 0.62, 0.58, **fields)
        assert over is not None
        assert over.headline == ""
        assert over.learnt["ratio"]["policy"].values == [0.60, 0.62, 0.58], "the figures stay"


def test_plain_sft_is_compared_over_seeds_by_the_measures_that_it_does_not_pass_by_construction() -> (
    None
):
    gain = learnt({"policy-control": (0.08, 0.01, 0.16)}).ratio
    over = of_shares(0.60, 0.62, 0.58, sum=gain, per_token=gain)
    assert over is not None
    assert "DPO over plain SFT: better" in over.headline
    assert over.learnt["sum"]["policy-control"].values == [0.08] * 3
