"""`control_pairs`: DPO on as many pairs of the same candidates is evaluated beside the policy."""

from collections import Counter
from pathlib import Path

import pytest

from stages.pipeline.graph import requested_nodes
from stages.pipeline.provenance import target_stage
from stages.store.records import Candidate, Judgement, Pair, load
from stages.store.sealed_json import load_json
from tests.helpers import TINY, Chain, build, nodes, refused, settings

RANDOM, COIN = "control_pairs=random", "control_pairs=coin"
POOL = ("sample.candidates_per_prompt=8", "sample.temperatures=[1.0]", "pairs=best_worst")


def pairs_of(chain: Chain, name: str, *typed: str) -> list[Pair]:
    return load(chain.folder(name, *typed) / "pairs.parquet", Pair)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(tmp_path_factory.mktemp("drawn") / "outputs")
    for kind in (RANDOM, COIN):
        build(chain.root, "stage=eval", *POOL, kind)
    return chain


def test_random_pairs_are_other_valid_contrasts_of_the_same_prompts(drawn: Chain) -> None:
    run_pairs, control = (pairs_of(drawn, name, *POOL, RANDOM) for name in ("pairs", "pairs_control"))
    assert Counter(p.prompt_id for p in control) == Counter(p.prompt_id for p in run_pairs)
    assert {p.prompt_id: p.split for p in control} == {p.prompt_id: p.split for p in run_pairs}
    assert {p.id for p in control} != {p.id for p in run_pairs} and {p.strategy for p in control} == {"random"}
    judged = load(drawn.folder("label", *POOL, RANDOM) / "judgements.parquet", Judgement)
    score = {j.candidate_id: j.score or 0.0 for j in judged}
    assert all(score[p.chosen_id] > score[p.rejected_id] for p in control)


def test_a_coin_turns_about_half_of_the_same_pairs_around(drawn: Chain) -> None:
    run_pairs, control = (pairs_of(drawn, name, *POOL, COIN) for name in ("pairs", "pairs_control"))
    candidates = load(drawn.folder("sample", *POOL) / "candidates.parquet", Candidate)
    text = {c.candidate_id: c.text for c in candidates}
    ids = {c.candidate_id: c.token_ids for c in candidates}
    for before, after in zip(run_pairs, control, strict=True):
        ids_before = (before.chosen_id, before.rejected_id)
        assert (after.chosen_id, after.rejected_id) in (ids_before, ids_before[::-1]) and after.split == before.split
        assert after.chosen[0]["content"] == text[after.chosen_id]
        assert after.chosen_token_ids == ids[after.chosen_id] and after.rejected_token_ids == ids[after.rejected_id]
    turned = sum(a.chosen_id != b.chosen_id for a, b in zip(run_pairs, control, strict=True))
    assert (
        len(run_pairs) / 5 < turned < len(run_pairs) * 4 / 5
    )  # a fair coin is outside once in a thousand such tables
    summary = drawn.manifest("pairs_control", *POOL, COIN)["metrics"]["summary"]
    assert f"({turned} of them turned" in summary


def test_it_is_evaluated_beside_the_policy_and_is_no_target_of_stage_pairs(drawn: Chain) -> None:
    results = load_json(drawn.folder("eval", *POOL, COIN) / "results.json", dict)
    assert results["models"]["control_pairs"] == "Control pairs"
    assert {"policy-control_pairs", "control_pairs-sft"} <= {*results["differences"]}
    graph = nodes(drawn.root, *POOL, COIN)
    for stage in ("pairs", "reference", "dpo"):
        requested = requested_nodes(settings(*TINY, *POOL, COIN, f"stage={stage}"), graph)
        assert [node.fingerprint for node in requested] == [graph[stage].fingerprint]
    control = [graph[name] for name in ("pairs_control", "reference_control", "control_pairs")]
    assert {target_stage(node) for node in control} == {"eval"}
    alone, both = nodes(drawn.root, *POOL), nodes(drawn.root, *POOL, RANDOM)
    assert all(both[name].fingerprint == alone[name].fingerprint for name in ("pairs", "dpo", "answer_policy"))


def test_rounds_train_the_control_round_by_round(tmp_path: Path) -> None:
    graph = nodes(tmp_path, "rounds=2", RANDOM)
    assert graph["control_pairs"].inputs["policy"] is graph["control_pairs_1"]
    assert graph["pairs_control_1"].inputs["judged"] is graph["label_1"]
    assert graph["reference_control"].inputs["reference"] is graph["control_pairs_1"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("control_pairs=random pairs=random", "pairs=random are such pairs already"),
        ("control_pairs=coin align=kto", "align=kto: rounds and controls are DPO's"),
        ("control_pairs=con", "expected one of [random, coin]"),
    ],
)
def test_what_cannot_be_is_refused(typed: str, message: str, tmp_path: Path) -> None:
    assert message in refused(*TINY, f"outputs={tmp_path}", *typed.split())
