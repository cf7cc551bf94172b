"""Labels of single completions: what is desirable, what is left out and why, and that TRL's KTO learns from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages import unpaired
from stages.config.choices import Unfinished
from stages.config.errors import UserError
from stages.store.records import Judgement, Pair, load, save
from stages.unpaired import UnpairedPreference
from tests.helpers import Chain, build, settings
from tests.pairing.building import SCORED
from tests.rows import candidate, judged_pool, work


def build_unpaired(
    folder: Path, judged: Path, **keys: Any
) -> tuple[dict[str, bool], dict[str, Any]]:
    """The label of each text, and the metrics."""
    out = work(folder)
    cfg = replace(settings("recipe=tiny").unpaired, **keys)
    metrics = unpaired.run(cfg, {"judged": judged}, out)
    rows = load(out / "unpaired.parquet", UnpairedPreference)
    assert [row.prompt[-1]["content"] for row in rows] == [row.prompt_id for row in rows]
    assert len(rows) == metrics["completions"] == metrics["desirable"] + metrics["undesirable"]
    return {row.completion[0]["content"]: row.label for row in rows}, metrics


@pytest.mark.parametrize(("threshold", "desirable"), [(1.0, "a"), (0.5, "abd"), (0.01, "abd")])
def test_a_score_is_desirable_from_the_threshold_on(
    threshold: float, desirable: str, tmp_path: Path
) -> None:
    labels, metrics = build_unpaired(
        tmp_path / "out", judged_pool(tmp_path / "pool", SCORED), threshold=threshold
    )
    assert labels == {text: text in desirable for text in "abcd"}
    assert metrics["left_out"] == {}


def test_what_has_no_label_is_left_out_and_counted(tmp_path: Path) -> None:
    answers = {
        "q": [
            (candidate("q", "good"), 1.0),
            (candidate("q", " good ", 4), 1.0),
            (candidate("q", "bad"), 0.0),
            (candidate("q", "unjudged"), None),
            (candidate("q", "on and on", finished=False), 1.0),
            (candidate("q", "off and off", finished=False), 0.5),
        ]
    }
    judged = judged_pool(tmp_path / "pool", answers)
    labels, metrics = build_unpaired(tmp_path / "out", judged)
    assert labels == {"good": True, "bad": False, "off and off": False}
    reasons = {"no judgement", "the text of another one", "desirable and unfinished"}
    assert metrics["left_out"] == dict.fromkeys(reasons, 1)
    labels, _ = build_unpaired(tmp_path / "dropped", judged, unfinished=Unfinished.drop)
    assert labels == {"good": True, "bad": False}


def test_of_preferences_what_wins_more_than_it_loses_is_desirable(tmp_path: Path) -> None:
    candidates = {text: candidate("q", text) for text in "abcd"}
    judged = judged_pool(tmp_path / "pool", {"q": [(c, None) for c in candidates.values()]})
    votes = list[Judgement]()
    for preferred, a, b in (("a", "a", "b"), ("b", "c", "a"), ("a", "b", "c"), ("tie", "b", "c")):
        ids = {"a": candidates[a].candidate_id, "b": candidates[b].candidate_id}
        votes.append(Judgement("q", "x", preference=preferred, **ids))
    save(judged / "judgements.parquet", votes, Judgement)
    labels, metrics = build_unpaired(tmp_path / "out", judged, threshold=0.99)
    assert labels == {"a": True, "c": False}
    assert metrics["left_out"] == {"as many preferences for it as against it": 1, "no judgement": 1}


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    answers = {"q": [(candidate("q", "a"), 0.5), (candidate("q", "b"), 0.0)]}
    judged = judged_pool(tmp_path / "pool", answers)
    for threshold in (0.7, 0.0):
        with pytest.raises(
            UserError, match=r"^unpaired\.threshold=.* Set unpaired\.threshold=0\.5,"
        ):
            build_unpaired(tmp_path / "alike", judged, threshold=threshold)
    labels, _ = build_unpaired(tmp_path / "as_told", judged, threshold=0.5)
    assert labels == {"a": True, "b": False}


def test_a_threshold_that_is_told_divides_scores_that_differ_little(tmp_path: Path) -> None:
    scores = (0.9999994, 0.9999996)
    answers = {
        "q": [(candidate("q", text), score) for text, score in zip("ab", scores, strict=True)]
    }
    judged = judged_pool(tmp_path / "pool", answers)
    with pytest.raises(UserError) as refusal:
        build_unpaired(tmp_path / "alike", judged, threshold=0.1)
    told = str(refusal.value).partition("Set unpaired.threshold=")[2].partition(",")[0]
    labels, _ = build_unpaired(tmp_path / "as_told", judged, threshold=float(told))
    assert labels == {"a": False, "b": True}


def test_prompts_are_held_out_as_dpos_are(chain: Chain) -> None:
    build(chain.root, "stage=unpaired")
    rows = load(chain.folder("unpaired", "stage=unpaired") / "unpaired.parquet", UnpairedPreference)
    held_out = {row.prompt_id for row in rows if row.split == "validation"}
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)
    assert held_out & {pair.prompt_id for pair in pairs}
    assert all((pair.split == "validation") == (pair.prompt_id in held_out) for pair in pairs)
