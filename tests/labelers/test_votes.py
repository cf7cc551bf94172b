"""Judges' votes, parsed again from a judgement's `raw`, give the same judgement."""

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from stages.config.choices import Reading, Rubrics
from stages.labelers.verdicts import SCALE, judge_votes
from stages.store.records import content_id
from tests.endpoints.servers import Model, Request, running
from tests.labelers.judging import PROBE, is_probe, judged, judging, shown_texts
from tests.rows import pool

pytest.importorskip("openai")
GIVEN = pool(*([f"poor {i}", f"fair {i}", f"good {i}"] for i in range(8)), ["same", "same"])


def moody(mood: int, words: tuple[Any, ...], texts: dict[str, str]) -> Any:
    """Return one of the words, chosen by a hash of the texts and their order."""
    return words[int(content_id(mood, texts), 16) % len(words)]


@pytest.mark.extended
def test_preferences_are_the_majority_of_what_is_read_again(tmp_path: Path) -> None:
    sides = ("A", "A", "B", "B", "tie")
    with (
        running(Model(judging(lambda texts: moody(0, sides, texts)))) as one,
        running(Model(judging(lambda texts: moody(1, sides, texts)))) as two,
        running(Model(lambda request: sentence(request))) as prose,
    ):
        judgements = judged(
            tmp_path, GIVEN, one.url, two.url, prose.url, reading="json", max_failed=1
        )
    seen = Counter[str]()
    for j in judgements:
        heard = judge_votes(j, Rubrics.pairwise, Reading.json)
        cast = [voice for voice in heard.values() if voice.word is not None]
        if j.error is None and j.raw:
            most, count = Counter(voice.word for voice in cast).most_common(1)[0]
            assert j.preference == (most if 2 * count > len(cast) else "tie")
            assert j.order_swapped_agrees == (not any(voice.order_decided for voice in cast))
        assert bool(heard) == (j.raw is not None), "no judge is asked about equal texts"
        seen.update(
            [
                "turned" if any(v.order_decided for v in cast) else "not",
                f"{len(cast)} of {len(heard)}",
            ]
        )
    assert seen["turned"] and seen["not"] and seen["2 of 3"] and seen["0 of 0"] == 1


def sentence(request: Request) -> str:
    return (
        PROBE if is_probe(request) else f"{min(shown_texts(request).values())} is the better one."
    )


def test_scores_are_the_mean_of_the_parsed_votes(tmp_path: Path) -> None:
    with (
        running(Model(judging(lambda texts: moody(0, SCALE, texts), "score"))) as one,
        running(Model(judging(lambda texts: moody(1, SCALE, texts), "score"))) as two,
    ):
        judgements = judged(tmp_path, GIVEN, one.url, two.url, kind="pointwise")
    for j in judgements:
        words = [voice.word for voice in judge_votes(j, Rubrics.pointwise, Reading.json).values()]
        assert len(words) == 2 and j.score == pytest.approx((fmean(map(int, words)) - 1) / 9)
