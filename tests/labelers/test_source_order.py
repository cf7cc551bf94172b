"""`label=source_order`: the place of a source in the pool is the label, and no answer is read."""

import pytest

from stages.store.records import Candidate, Judgement, Pair, load
from tests.helpers import TINY, Chain, build, refused

POOL = "sample.pool=[{model: sft, n: 2}, {model: base, n: 2}, {model: sft, n: 1, temperature: 2.0}]"
TYPED = ("label=source_order", POOL, "pairs=all")


@pytest.mark.extended
def test_an_earlier_source_is_better_than_a_later_one(chain: Chain) -> None:
    typed = (*TYPED, "pairs.max_length_difference=1")
    build(chain.root, "stage=pairs", *typed)
    names = [*chain.manifest("pool", *TYPED)["metrics"]["sources"]]
    score_of = dict(zip(names, (1.0, 0.5, 0.0), strict=True))
    candidates = load(chain.folder("pool", *TYPED) / "candidates.parquet", Candidate)
    by_id = {c.candidate_id: c for c in candidates}
    for j in load(chain.folder("label", *TYPED) / "judgements.parquet", Judgement):
        assert j.score == score_of[str(by_id[str(j.candidate_id)].policy)]
    pairs = load(chain.folder("pairs", *typed) / "pairs.parquet", Pair)
    assert pairs
    for pair in pairs:
        assert score_of[str(pair.chosen_policy)] > score_of[str(pair.rejected_policy)]
        lengths = [by_id[str(name)].n_tokens for name in (pair.chosen_id, pair.rejected_id)]
        assert abs(lengths[0] - lengths[1]) <= 1


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
