"""Check that everything that shows results reads the list of evaluated models and their titles."""

import json
import shutil
from pathlib import Path

import pytest

from stages.commands import compare, export
from stages.commands.comparing import measured
from stages.commands.finished_run import FinishedRun, training_tables
from stages.config.choices import Role
from stages.pipeline.evaluation_graph import evaluated_models
from stages.pipeline.graph import control_block
from stages.store.node import Node, published_node
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, inside, nodes, refused, settings

LINE = ("control=true", "arms=[grpo]", "grpo.evaluations=0")


@pytest.fixture(scope="module")
def five(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Node]]:
    root = tmp_path_factory.mktemp("five") / "outputs"
    shutil.copytree(built, root, symlinks=True)
    build(root, *LINE)
    return root, nodes(root, *LINE)


@pytest.mark.extended
def test_five_models_are_evaluated_and_differences_taken_between_named_pairs(
    five: tuple[Path, dict[str, Node]],
) -> None:
    root, nodes_by_run = five
    folder = Store(root).folder(nodes_by_run["eval"])
    results = json.loads((folder / "results.json").read_text())
    assert results["models"] == {
        "base": "Base",
        "sft": "SFT",
        "control": "Control",
        "grpo": "GRPO",
        "policy": "DPO",
    }
    named = {
        "sft-base": "SFT − Base",
        "control-sft": "Control − SFT",
        "policy-sft": "DPO − SFT",
        "policy-control": "DPO − Control",
        "policy-base": "DPO − Base",
        "policy-grpo": "DPO − GRPO",
        "grpo-sft": "GRPO − SFT",
    }
    assert results["differences"] == named
    seen = results["groups"]["seen tasks"]
    for name in named:
        a, b = name.split("-")
        assert seen[name]["mean"] == pytest.approx(seen[a]["mean"] - seen[b]["mean"])
    assert set(results["kl"]) == {"control", "grpo", "policy"}
    assert results["kl"]["control"]["per_token"] != results["kl"]["policy"]["per_token"]
    assert {"sft", "control", "policy", "policy-sft", "policy-control"} <= set(
        results["references"]
    )
    assert "policy" in results["learnt"]["ratio"] and "grpo" not in results["learnt"]["ratio"], (
        "it trains on them"
    )
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert list(metrics["pass_rate"]) == [*results["models"]]


def test_a_control_and_an_arm_change_nothing_about_the_other_models(
    five: tuple[Path, dict[str, Node]],
) -> None:
    root, nodes_by_run = five
    three = json.loads((Store(root).folder(nodes(root)["eval"]) / "results.json").read_text())
    with_both = json.loads((Store(root).folder(nodes_by_run["eval"]) / "results.json").read_text())
    for group, row in three["groups"].items():
        for role in three["models"]:
            assert row[role]["mean"] == with_both["groups"][group][role]["mean"]
    assert three["kl"]["policy"] == with_both["kl"]["policy"]
    assert three["verdict"].split("(")[0] == with_both["verdict"].split("(")[0]


def test_compare_and_cards_read_the_same_list(five: tuple[Path, dict[str, Node]]) -> None:
    root, nodes_by_run = five
    store = Store(root)
    rows = measured.measured_rows(
        store,
        compare.published_nodes(store),
        {nodes_by_run["eval"].fingerprint},
    )
    row_by_role = {row.role: row for row in rows}
    assert [*row_by_role] == ["sft", "control", "grpo", "policy"]
    results = json.loads((store.folder(nodes_by_run["eval"]) / "results.json").read_text())
    assert row_by_role["policy"].passed.mean() == results["primary"]["policy"]["mean"]
    card = export.evaluation_section(results, 0.9)
    assert "with 90% intervals" in card
    assert "|  | prompts | Base" in card
    assert " DPO − SFT | DPO" in card


@pytest.mark.extended
def test_an_arm_is_another_objective_and_named_once() -> None:
    for line in (
        ["arms=[dpo]"],
        ["align=grpo", "arms=[grpo]"],
        ["align=none", "arms=[dpo]"],
        ["arms=[grpo,grpo]"],
    ):
        assert f"arms[{line[-1].count(',')}]=" in refused("stage=plan", *line)


def test_the_objectives_may_change_places(five: tuple[Path, dict[str, Node]]) -> None:
    root, by_dpo = five
    by_grpo = nodes(root, "align=grpo", "arms=[dpo]", "grpo.evaluations=0")
    for role, name in ((Role.policy, "grpo"), ("dpo", "dpo")):
        assert by_grpo["eval"].inputs[role].fingerprint == by_dpo[name].fingerprint
    roles = {Role.policy: "grpo", Role.dpo: "dpo", Role.sft: "sft"}
    read = {
        role: published_node(root, name, by_dpo[name].fingerprint, {})
        for role, name in roles.items()
    }
    tables = training_tables(read)
    assert by_dpo["pairs"].fingerprint in {table.fingerprint for table in tables}, (
        "an arm's pairs are exported, too"
    )


def test_the_control_publishes_its_last_step_as_dpo_does() -> None:
    assert (
        control_block(settings("recipe=tiny", "control=true", "dpo.evaluations=4")).evaluations == 0
    )


def test_a_user_names_the_policy_or_its_objective(
    chain: Chain, five: tuple[Path, dict[str, Node]]
) -> None:
    _, by_name = five
    run = FinishedRun("this run", evaluated_models(by_name), None)
    assert (
        run.model(Role.dpo, "chat.model") is run.model(Role.policy, "chat.model") is by_name["dpo"]
    )
    assert run.model(Role.grpo, "chat.model") is by_name["grpo"]
    ran = inside(*TINY, f"outputs={chain.root}", "stage=chat", "chat.model=control")
    assert "error: chat.model=control" in ran.stderr
