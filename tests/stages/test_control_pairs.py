"""`control_pairs`: DPO on as many pairs of the same candidates is evaluated beside the policy."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from stages.pairs import turn_around
from stages.pipeline.graph import requested_nodes
from stages.pipeline.provenance import target_stage
from stages.report import model_kind
from stages.store.records import Candidate, Message, Pair, load
from stages.store.sealed_json import load_json
from tests.helpers import TINY, Chain, build, build_node, nodes, refused, settings

RANDOM, COIN = "control_pairs=random", "control_pairs=coin"
POOL = ("sample.candidates_per_prompt=8", "sample.temperatures=[1.0]", "pairs=best_worst")


def pairs_of(chain: Chain, name: str, *typed: str) -> list[Pair]:
    return load(chain.folder(name, *typed) / "pairs.parquet", Pair)


@pytest.fixture(scope="module")
def drawn(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    chain = Chain(
        shutil.copytree(built, tmp_path_factory.mktemp("drawn") / "outputs", symlinks=True)
    )
    build_node(chain.root, "pairs_control", *POOL, RANDOM)
    build(chain.root, "stage=eval", *POOL, COIN)
    return chain


@pytest.mark.extended
def test_a_coin_turns_about_half_of_the_same_pairs_around(drawn: Chain) -> None:
    run_pairs, control = (pairs_of(drawn, name, *POOL, COIN) for name in ("pairs", "pairs_control"))
    candidates = load(drawn.folder("sample", *POOL) / "candidates.parquet", Candidate)
    text = {c.candidate_id: c.text for c in candidates}
    ids = {c.candidate_id: c.token_ids for c in candidates}
    for before, after in zip(run_pairs, control, strict=True):
        ids_before = (before.chosen_id, before.rejected_id)
        assert (after.chosen_id, after.rejected_id) in (
            ids_before,
            ids_before[::-1],
        ) and after.split == before.split
        assert after.chosen[0]["content"] == text[after.chosen_id]
        assert (
            after.chosen_token_ids == ids[after.chosen_id]
            and after.rejected_token_ids == ids[after.rejected_id]
        )
    turned = sum(a.chosen_id != b.chosen_id for a, b in zip(run_pairs, control, strict=True))
    assert (
        len(run_pairs) / 5 < turned < len(run_pairs) * 4 / 5
    )  # a fair coin is outside once in a thousand such tables
    summary = drawn.manifest("pairs_control", *POOL, COIN)["metrics"]["summary"]
    assert f"({turned} of them turned" in summary


def test_it_is_evaluated_beside_the_policy_and_is_no_target_of_stage_pairs(drawn: Chain) -> None:
    results = load_json(drawn.folder("eval", *POOL, COIN) / "results.json", dict)
    assert results["models"]["control_pairs"] == "Control pairs"
    assert (
        model_kind("control_pairs", drawn.manifest("control_pairs", *POOL, COIN)) == "control_pairs"
    )
    assert {"policy-control_pairs", "control_pairs-sft"} <= {*results["differences"]}
    graph = nodes(drawn.root, *POOL, COIN)
    for stage in ("pairs", "reference", "dpo"):
        requested = requested_nodes(settings(*TINY, *POOL, COIN, f"stage={stage}"), graph)
        assert [node.fingerprint for node in requested] == [graph[stage].fingerprint]
    control = [graph[name] for name in ("pairs_control", "reference_control", "control_pairs")]
    assert {target_stage(node) for node in control} == {"eval"}
    alone, both = nodes(drawn.root, *POOL), nodes(drawn.root, *POOL, RANDOM)
    assert all(
        both[name].fingerprint == alone[name].fingerprint
        for name in ("pairs", "dpo", "answer_policy")
    )


def test_rounds_train_the_control_round_by_round(tmp_path: Path) -> None:
    graph = nodes(tmp_path, "rounds=2", RANDOM)
    assert graph["control_pairs"].inputs["policy"] is graph["control_pairs_1"]
    assert graph["pairs_control_1"].inputs["judged"] is graph["label_1"]
    assert graph["reference_control"].inputs["reference"] is graph["control_pairs_1"]


@pytest.mark.extended
def test_cut_off_candidates_are_rejected_as_in_the_runs_pairs(chain: Chain) -> None:
    """Answers of SFT end, and those of the base do not."""
    pool = ("label=source_order", "sample.pool=[{model:sft,n:2},{model:base,n:1}]", RANDOM)
    build_node(chain.root, "pairs_control", *pool)
    build_node(chain.root, "pairs", *pool)
    run_pairs, control = (pairs_of(chain, name, *pool) for name in ("pairs", "pairs_control"))
    assert sum(p.rejected_finish_reason == "length" for p in run_pairs) > 0
    assert Counter(p.prompt_id for p in control) == Counter(p.prompt_id for p in run_pairs)


def test_a_turned_pair_of_several_turns_has_an_id_of_its_own() -> None:
    """The two pairs share their first answer."""
    turns = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "?"}]
    sides = [[*turns, {"role": "assistant", "content": answer}] for answer in "BCD"]
    turned = [turn_around(pair(sides[0], rejected)) for rejected in sides[1:]]
    assert len({p.id for p in turned}) == 2 and all(p.rejected == sides[0] for p in turned)


def pair(chosen: list[Message], rejected: list[Message]) -> Pair:
    prompt = [{"role": "user", "content": "Q"}]
    rest = {
        "labeler": "dataset",
        "strategy": "all",
        "chosen_id": "a",
        "rejected_id": "b",
        "split": "preference",
    }
    return Pair(
        "x", "p", prompt, chosen, rejected, margin=None, **rest, rejected_finish_reason="stop"
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("control_pairs=coin align=kto", "align=kto: rounds and controls are DPO's"),
        ("control_pairs=con", "random, coin"),
    ],
)
def test_what_cannot_be_is_refused(typed: str, message: str, tmp_path: Path) -> None:
    assert message in refused(*TINY, f"outputs={tmp_path}", *typed.split())
