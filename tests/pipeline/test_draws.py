"""Tests of draws that depend on earlier labels: `sample.until_pair` within a round, `sample.draw` between rounds."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from stages.samplers.asked_prompts import order_by_outcomes
from stages.store.judged_pool import count_right, read_judged_prompts
from stages.store.records import Candidate, Example, Judgement, content_id, load, save
from tests.helpers import TINY, Chain, build, inside, nodes, refused

DRAWN = ("sample.candidates_per_prompt=2", "sample.temperatures=[0.9,1.2]", "pairs.min_score=1")
FURTHER = {"sample": 1, "label": 1, "pairs": 1}


def by_prompt(candidates: list[Candidate]) -> dict[str, list[str]]:
    ids = defaultdict[str, list[str]](list)
    for c in candidates:
        ids[c.prompt_id].append(c.candidate_id)
    return dict(ids)


@pytest.mark.extended
def test_further_draws_ask_the_prompts_without_a_right_candidate_and_share_all_earlier_nodes(
    chain: Chain,
) -> None:
    """Each draw asks fewer. Each candidate is one that a single draw of eight would have had."""
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
        assert by_prompt(further).keys() == {
            prompt.id for prompt, right, _ in count_right(judged, 1) if not right
        }
    assert len(draws[0]) == 96 > len(draws[1]) > len(draws[2]) >= len(draws[3])
    build(chain.root, "stage=sample", *DRAWN, "sample.candidates_per_prompt=8")
    whole = load(
        chain.folder("sample", *DRAWN, "sample.candidates_per_prompt=8") / "candidates.parquet",
        Candidate,
    )
    eight = by_prompt(whole)
    joined = [*read_judged_prompts(chain.folder("label", *last))]
    for prompt, candidates, judgements in joined:
        assert [c.candidate_id for c in candidates] == eight[prompt.id][: len(candidates)]
        assert [j.candidate_id for j in judgements] == [c.candidate_id for c in candidates]
    assert {len(candidates) for _, candidates, _ in joined} <= {2, 4, 6, 8}
    first, all_draws = (chain.manifest("pairs", *typed)["metrics"] for typed in (DRAWN, last))
    assert all_draws["pairs"] > first["pairs"] and all_draws["prompts"] == first["prompts"]
    tokens = sum(c.n_tokens for draw in draws for c in draw)
    assert (
        all_draws["sampled_tokens"] == tokens
        and all_draws["tokens_per_pair"] == tokens / all_draws["pairs"]
    )
    assert chain.manifest("label", *last)["metrics"]["redrawn"] == sum(map(len, draws[1:]))
    page = (chain.root / "labels.html").read_text()
    assert f"{sum(map(len, draws[1:]))} of the answers" in page


@pytest.mark.extended
def test_a_draw_after_which_every_prompt_has_a_right_candidate_asks_nobody(chain: Chain) -> None:
    typed = ("sample.candidates_per_prompt=16", *DRAWN[1:], "sample.until_pair=6")
    build(chain.root, "stage=pairs", *typed)
    sizes = [
        len(load(chain.folder(f"sample_draw_{n}", *typed) / "candidates.parquet", Candidate))
        for n in range(2, 8)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0
    assert chain.manifest("pairs", *typed)["metrics"]["pairs"] > 0


@pytest.mark.extended
def test_further_draws_belong_to_pairs(chain: Chain) -> None:
    """`stage=sample` and `stage=label` build the first draw alone, after which `stage=pairs` has all that it needs."""
    typed = (*DRAWN, "sample.until_pair=1")
    before = chain.count()
    build(chain.root, "stage=label", *typed)
    assert chain.count() - before == {"sample": 1, "label": 1}
    assert "of the answers" not in (chain.root / "labels.html").read_text()
    plan = inside(*TINY, f"outputs={chain.root}", "stage=plan", "rounds=2", *typed).stdout
    assert [
        line.split("  ")[0] for line in plan.splitlines() if line.startswith(("sample", "label"))
    ] == [
        *("sample 1", "label draw 1 1", "sample draw 2 1", "label 1"),
        *("sample", "label draw 1", "sample draw 2", "label"),
    ]
    build(chain.root, "stage=pairs", "upstream=require", *typed)
    assert chain.count() - before == {"sample": 2, "label": 2, "pairs": 1}
    assert chain.manifest("sample_draw_2", *typed)["command"].endswith("stage=pairs")


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (
            "pairs.min_score=1 sample.until_pair=null sample.draw=mixed",
            "Set sample.prompts_per_round=N",
        ),
        ("pairs.min_score=0", "accepts every candidate. Set pairs.min_score=1"),
        ("pairs.min_score=1 label=human", "label=human does not give. Use label=verifier"),
        (
            "pairs.min_score=1 label=reward_model label.reward_model.path=sft",
            "label=reward_model does not give",
        ),
        (
            "pairs.min_score=1 sample.pool=[{n:2},{model:sft,n:2}]",
            "Leave out sample.file and sample.pool.",
        ),
    ],
)
def test_what_cannot_say_which_candidate_is_right_is_refused(typed: str, reason: str) -> None:
    assert reason in refused(*TINY, "sample.until_pair=1", *typed.split())


def test_kto_draws_again_by_the_score_of_a_desirable_completion(tmp_path: Path) -> None:
    typed = ("align=kto", "sample.until_pair=1", "unpaired.threshold=0.5")
    assert nodes(tmp_path, *typed)["sample_draw_2"].config.right_from == 0.5
    assert "align=kto trains on no pairs" in refused(*TINY, *typed, "pairs.min_score=1")


@pytest.mark.extended
def test_rounds_that_draw_by_outcomes_share_all_nodes_of_a_run_with_fewer(chain: Chain) -> None:
    """The third round reads the labels of all draws of the first two, and asks a prompt of neither."""
    typed = (
        *DRAWN,
        "sample.until_pair=1",
        "sample.prompts_per_round=12",
        "sample.draw=mixed",
        "dpo.batch_size=2",
    )
    build(chain.root, "stage=label", "rounds=2", *typed)
    before = chain.count()
    build(chain.root, "stage=label", "rounds=3", *typed)
    assert chain.count() - before == FURTHER | {"sample": 2, "label": 2, "reference": 1, "dpo": 1}
    two, three = (nodes(chain.root, f"rounds={number}", *typed) for number in (2, 3))
    for longer, shorter in (("sample_1", "sample_1"), ("sample_2", "sample"), ("label_2", "label")):
        assert three[longer].fingerprint == two[shorter].fingerprint
    assert three["sample"].inputs.keys() == {"policy", "data", "judged_1", "judged_2"}
    assert [three["sample"].inputs[f"judged_{i}"] for i in (1, 2)] == [
        three["label_1"],
        three["label_2"],
    ]
    names = ("sample_1", "sample_2", "sample")
    rounds = [
        load(chain.folder(name, "rounds=3", *typed) / "prompts.parquet", Example) for name in names
    ]
    assert [len(prompts) for prompts in rounds] == [12, 12, 12]
    assert len({prompt.id for prompts in rounds for prompt in prompts}) == 36
    hashed = nodes(chain.root, "rounds=3", *typed, "sample.draw=hash")
    assert hashed["sample_1"].fingerprint == three["sample_1"].fingerprint
    assert hashed["sample_2"].fingerprint != three["sample_2"].fingerprint


def test_a_round_asks_most_where_outcomes_were_mixed(tmp_path: Path) -> None:
    """Tasks with equally many prompts left have numbers in proportion to their smoothed share of mixed outcomes."""
    rest = [
        Example(content_id(task, i), [], None, "s", task, "preference")
        for task in "xyz"
        for i in range(100)
    ]
    # mixed and all prompts of the earlier round: 9/10, 3/8 and 1/10
    shares = {"x": (8, 8), "y": (2, 6), "z": (0, 8)}
    earlier = [
        Example(f"{t}{i}", [], None, "s", t, "preference")
        for t, (_, n) in shares.items()
        for i in range(n)
    ]
    right = {e.id: [True, int(e.id[1:]) >= shares[e.task][0]] for e in earlier}
    answers = [
        Candidate(p, f"{p}-{i}", "", "hf", 1, 0, "", None, "stop", None, 2)
        for p in right
        for i in range(2)
    ]
    judged = [
        Judgement(
            c.prompt_id, "verifier", c.candidate_id, right[c.prompt_id][int(c.candidate_id[-1])]
        )
        for c in answers
    ]
    save(tmp_path / "prompts.parquet", earlier, Example)
    save(tmp_path / "candidates.parquet", answers, Candidate)
    save(tmp_path / "judgements.parquet", judged, Judgement)
    ordered = order_by_outcomes([*rest, *earlier], [tmp_path], 1.0)
    assert sorted(e.id for e in ordered) == sorted(e.id for e in rest)
    for size, counts in ((55, (36, 15, 4)), (110, (72, 30, 8)), (200, (100, 78, 22))):
        tasks = Counter(e.task for e in ordered[:size])
        assert all(
            abs(tasks[task] - count) <= 1 for task, count in zip("xyz", counts, strict=True)
        ), tasks
