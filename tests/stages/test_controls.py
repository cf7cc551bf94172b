"""Controls beside the policy: SFT on the chosen completions, and DPO on pairs that a coin has turned."""

import shutil
from pathlib import Path

import pytest

from stages.evaluation.outcomes import differences
from stages.pipeline.graph import requested_nodes
from stages.report import role_in_glossary
from stages.store.records import Candidate, Example, Pair, load
from stages.store.sealed_json import load_json
from tests.helpers import TINY, Chain, build, nodes, refused, settings

CONTROL = "control=true"
RANDOM = "control_pairs=random"
BOTH = (CONTROL, "control_pairs=coin")


def pairs_of(chain: Chain, name: str) -> list[Pair]:
    return load(chain.folder(name, *BOTH) / "pairs.parquet", Pair)


@pytest.fixture(scope="module")
def controlled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp("controlled") / "outputs"
    chain = Chain(shutil.copytree(built, root, symlinks=True))
    build(chain.root, "stage=eval", *BOTH)
    return chain


def test_a_coin_turns_about_half_of_the_same_pairs_around(controlled: Chain) -> None:
    candidates = load(controlled.folder("sample") / "candidates.parquet", Candidate)
    by_id = {c.candidate_id: c for c in candidates}
    pairs = pairs_of(controlled, "pairs")
    turned = 0
    for before, after in zip(pairs, pairs_of(controlled, "pairs_control"), strict=True):
        assert {after.chosen_id, after.rejected_id} == {before.chosen_id, before.rejected_id}
        assert after.split == before.split
        assert after.chosen[0]["content"] == by_id[after.chosen_id].text
        assert after.chosen_token_ids == by_id[after.chosen_id].token_ids
        turned += after.chosen_id != before.chosen_id
    # a fair coin is outside once in a thousand such tables
    assert len(pairs) / 5 < turned < len(pairs) * 4 / 5


def test_it_is_evaluated_beside_the_policy_and_is_no_target_of_stage_pairs(
    controlled: Chain,
) -> None:
    results = load_json(controlled.folder("eval", *BOTH) / "results.json", dict)
    assert {"policy-control_pairs", "control_pairs-sft"} <= {*results["differences"]}
    manifest = controlled.manifest("control_pairs", *BOTH)
    assert role_in_glossary("control_pairs", manifest) == "control_pairs"
    graph = nodes(controlled.root, *BOTH)
    plain = nodes(controlled.root)
    for stage in ("pairs", "reference", "dpo"):
        requested = requested_nodes(settings(*TINY, *BOTH, f"stage={stage}"), graph)
        assert [node.fingerprint for node in requested] == [plain[stage].fingerprint]


def test_rounds_train_the_control_round_by_round(tmp_path: Path) -> None:
    graph = nodes(tmp_path, "rounds=2", RANDOM)
    assert graph["control_pairs"].inputs["policy"] is graph["control_pairs_1"]
    assert graph["pairs_control_1"].inputs["judged"] is graph["label_1"]
    assert graph["reference_control"].inputs["reference"] is graph["control_pairs_1"]


def test_the_control_of_dpo_is_no_control_of_kto(tmp_path: Path) -> None:
    """It learns from the chosen answers of DPO's pairs in DPO's steps. KTO learns from more answers, in its own."""
    graph = nodes(tmp_path, "align=kto", "arms=[dpo]", "control=true")
    models = graph["eval"].config.models
    assert {"control_dpo", "dpo", "policy"} <= models.keys()
    assert "control" not in models
    assert {"dpo-control_dpo", "policy-dpo"} <= differences(models).keys()
    plain = nodes(tmp_path, "control=true")
    assert graph["control_dpo"].fingerprint == plain["control"].fingerprint


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("control_pairs=random pairs=random", "pairs=random are such pairs already"),
        ("control_pairs=coin align=kto", "align=kto: rounds and controls are DPO's"),
        ("control_pairs=con", "random, coin"),
    ],
)
def test_what_cannot_be_is_refused(typed: str, message: str, tmp_path: Path) -> None:
    assert message in refused(*TINY, f"outputs={tmp_path}", *typed.split())


def test_a_control_sees_what_dpo_sees_in_its_order_and_steps(controlled: Chain) -> None:
    pairs = [pair for pair in pairs_of(controlled, "pairs") if pair.split == "train"]
    examples = load(controlled.folder("select_control", *BOTH) / "examples.parquet", Example)
    trained = [(e.id, e.reference) for e in examples if e.split == "sft"]
    assert trained == [(p.id, p.chosen[0]["content"]) for p in pairs]
    control = controlled.manifest("control", *BOTH)
    dpo = controlled.manifest("dpo", *BOTH)
    assert control["metrics"]["steps"] == dpo["metrics"]["steps"]
    assert control["inputs"]["base"]["fingerprint"] == dpo["inputs"]["policy"]["fingerprint"]
    for key in ("batch_size", "seed"):  # what decides the order
        assert control["config"][key] == dpo["config"][key]


def test_a_control_of_several_rounds_follows_them_one_by_one(tmp_path: Path) -> None:
    graph = nodes(tmp_path, CONTROL, "rounds=2")
    first = graph["control_1"]
    last = graph["control"]
    assert (first.inputs["base"], last.inputs["base"]) == (graph["sft"], first)
    assert first.inputs["data"].inputs["pairs"] == graph["pairs_1"]
    assert last.inputs["data"].inputs["pairs"] == graph["pairs"]
    assert graph["eval"].inputs["control"] == last


def test_a_control_takes_only_arguments_that_sft_has(tmp_path: Path) -> None:
    robust = ("dpo.loss_type=[robust]", "dpo.trainer.label_smoothing=0.1")
    control = nodes(tmp_path, CONTROL, *robust, "dpo.trainer.weight_decay=0.1")["control"].config
    assert control.trainer.given == settings(*TINY).dpo.trainer.given | {"weight_decay": 0.1}
