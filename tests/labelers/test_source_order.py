"""`label=source_order`: the place of a source in the pool is the label, and no answer is read."""

import pytest

from stages.store.records import Candidate, Judgement, Pair, load
from tests.helpers import TINY, Chain, build, refused

POOL = "sample.pool=[{model: sft, n: 2}, {model: base, n: 2}, {model: sft, n: 1, temperature: 2.0}]"
TYPED = ("label=source_order", POOL, "pairs=all")


@pytest.mark.extended
def test_an_earlier_source_is_better_than_a_later_one(chain: Chain) -> None:
    build(chain.root, "stage=pairs", *TYPED)
    pool, judged = chain.folder("pool", *TYPED), chain.folder("label", *TYPED)
    source_of = {c.candidate_id: c.policy for c in load(pool / "candidates.parquet", Candidate)}
    names = [*chain.manifest("pool", *TYPED)["metrics"]["sources"]]
    assert {*source_of.values()} == {*names} and len(names) == 3
    judgements = load(judged / "judgements.parquet", Judgement)
    assert {j.candidate_id for j in judgements} == source_of.keys()
    score_of = dict(zip(names, (1.0, 0.5, 0.0), strict=True))
    for j in judgements:
        assert j.score == score_of[str(source_of[str(j.candidate_id)])]
    pairs = load(chain.folder("pairs", *TYPED) / "pairs.parquet", Pair)
    places = [
        (names.index(p.chosen_policy or ""), names.index(p.rejected_policy or "")) for p in pairs
    ]
    assert pairs and all(chosen < rejected for chosen, rejected in places)
    metrics = chain.manifest("label", *TYPED)["metrics"]
    assert metrics["pass_rate"] is None and " before ".join(names) in metrics["summary"]


@pytest.mark.extended
def test_the_difference_of_lengths_is_bounded_in_tokens(chain: Chain) -> None:
    def longest(*typed: str) -> int:
        build(chain.root, "stage=pairs", *TYPED, *typed)
        tokens = {
            c.candidate_id: c.n_tokens
            for c in load(chain.folder("pool", *TYPED) / "candidates.parquet", Candidate)
        }
        pairs = load(chain.folder("pairs", *TYPED, *typed) / "pairs.parquet", Pair)
        return max(abs(tokens[p.chosen_id or ""] - tokens[p.rejected_id or ""]) for p in pairs)

    assert longest() > 1 >= longest("pairs.max_length_difference=1")
    refusal = refused(
        *TINY, f"outputs={chain.root}", "stage=pairs", *TYPED, "pairs.max_length_difference=-1"
    )
    assert "must be from 0" in refusal


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("label=source_order", "label=source_order needs two sources, the better one first"),
        ("label=source_order align=grpo", "GRPO needs a score of every completion"),
        ("label=source_order sft.demonstrations=selected", "needs scores of single answers"),
        ("eval/judged=judge eval.judged.labeler=source_order", "eval.judged.labeler=source_order"),
    ],
)
def test_what_cannot_be_is_refused(typed: str, message: str, chain: Chain) -> None:
    pool = [POOL] if "demonstrations" in typed else []
    assert message in refused(*TINY, f"outputs={chain.root}", *typed.split(), *pool)
