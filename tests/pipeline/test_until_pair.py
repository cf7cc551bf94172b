"""Tests of `sample.until_pair`: further candidates for the prompts in which no candidate is right yet."""

from collections import defaultdict

import pytest

from stages.store.judged_pool import count_right, read_judged_prompts
from stages.store.records import Candidate, load
from tests.helpers import TINY, Chain, build, inside, nodes, refused

DRAWN = ("sample.candidates_per_prompt=2", "sample.temperatures=[0.9,1.2]", "pairs.min_score=1")
FURTHER = {"sample": 1, "label": 1, "pairs": 1}


def by_prompt(candidates: list[Candidate]) -> dict[str, list[str]]:
    ids = defaultdict[str, list[str]](list)
    for c in candidates:
        ids[c.prompt_id].append(c.candidate_id)
    return dict(ids)


def test_further_draws_ask_the_prompts_without_a_right_candidate_and_share_all_earlier_nodes(chain: Chain) -> None:
    """The last of three draws asks nobody. Each candidate is one that a single draw of six would have had."""
    build(chain.root, "stage=pairs", *DRAWN)
    last = (*DRAWN, "sample.until_pair=3")
    for number in (1, 2, 3):
        before = chain.count()
        build(chain.root, "stage=pairs", *DRAWN, f"sample.until_pair={number}")
        assert chain.count() - before == FURTHER
    assert chain.folder("sample", *last) == chain.folder("sample", *DRAWN)
    assert chain.folder("label_draw_1", *last) == chain.folder("label", *DRAWN)
    names = [name for name in nodes(chain.root, *last) if name.startswith("sample")]
    assert names == ["sample", "sample_draw_2", "sample_draw_3", "sample_draw_4"]
    draws = [load(chain.folder(name, *last) / "candidates.parquet", Candidate) for name in names]
    for number, further in enumerate(draws[1:], 1):
        judged = chain.folder(f"label_draw_{number}", *last)
        assert by_prompt(further).keys() == {prompt.id for prompt, right, _ in count_right(judged, 1) if not right}
    assert len(draws[0]) == 96 > len(draws[1]) > len(draws[2]) > len(draws[3]) == 0
    build(chain.root, "stage=sample", *DRAWN, "sample.candidates_per_prompt=6")
    whole = load(chain.folder("sample", *DRAWN, "sample.candidates_per_prompt=6") / "candidates.parquet", Candidate)
    six = by_prompt(whole)
    joined = [*read_judged_prompts(chain.folder("label", *last))]
    for prompt, candidates, judgements in joined:
        assert [c.candidate_id for c in candidates] == six[prompt.id][: len(candidates)]
        assert [j.candidate_id for j in judgements] == [c.candidate_id for c in candidates]
    assert {len(candidates) for _, candidates, _ in joined} == {2, 4, 6}
    first, all_draws = (chain.manifest("pairs", *typed)["metrics"] for typed in (DRAWN, last))
    assert all_draws["pairs"] > first["pairs"] and all_draws["prompts"] == first["prompts"]
    tokens = sum(c.n_tokens for draw in draws for c in draw)
    assert all_draws["sampled_tokens"] == tokens and all_draws["tokens_per_pair"] == tokens / all_draws["pairs"]
    assert chain.manifest("label", *last)["metrics"]["redrawn"] == sum(map(len, draws[1:]))
    page = (chain.root / "labels.html").read_text()
    assert f"{sum(map(len, draws[1:]))} of the answers" in page


def test_further_draws_belong_to_pairs(chain: Chain) -> None:
    """`stage=sample` and `stage=label` build the first draw alone, after which `stage=pairs` has all that it needs."""
    typed = (*DRAWN, "sample.until_pair=1")
    before = chain.count()
    build(chain.root, "stage=label", *typed)
    assert chain.count() - before == {"sample": 1, "label": 1}
    assert "of the answers" not in (chain.root / "labels.html").read_text()
    plan = inside(*TINY, f"outputs={chain.root}", "stage=plan", "rounds=2", *typed).stdout
    assert [line.split("  ")[0] for line in plan.splitlines() if line.startswith(("sample", "label"))] == [
        *("sample 1", "label draw 1 1", "sample draw 2 1", "label 1"),
        *("sample", "label draw 1", "sample draw 2", "label"),
    ]
    build(chain.root, "stage=pairs", "upstream=require", *typed)
    assert chain.count() - before == {"sample": 2, "label": 2, "pairs": 1}
    assert chain.manifest("sample_draw_2", *typed)["command"].endswith("stage=pairs")


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("pairs.min_score=0", "accepts every candidate. Set pairs.min_score=1"),
        ("pairs.min_score=1 label=human", "label=human does not give. Use label=verifier"),
        ("pairs.min_score=1 label=reward_model label.reward_model.path=sft", "label=reward_model does not give"),
        ("pairs.min_score=1 sample.pool=[{n:2},{model:sft,n:2}]", "Leave out sample.file and sample.pool."),
    ],
)
def test_what_cannot_say_which_candidate_is_right_is_refused(typed: str, reason: str) -> None:
    assert reason in refused(*TINY, "sample.until_pair=1", *typed.split())
