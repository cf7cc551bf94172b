"""Check that everything that shows results reads the list of evaluated models and their titles."""

import json

import pytest

from stages.commands.finished_run import FinishedRun
from stages.config.choices import Role
from stages.pipeline.evaluation_graph import evaluated_models
from tests.helpers import TINY, Chain, build, inside, nodes

LINE = ("control=true", "arms=[grpo]", "grpo.evaluations=0")


@pytest.mark.extended
def test_five_models_are_evaluated_and_differences_taken_between_named_pairs(chain: Chain) -> None:
    build(chain.root, *LINE)
    results = json.loads((chain.folder("eval", *LINE) / "results.json").read_text())
    assert results["models"] == {
        "base": "Base",
        "sft": "SFT",
        "control": "Control",
        "grpo": "GRPO",
        "policy": "DPO",
    }
    names = {"sft-base", "control-sft", "policy-sft", "policy-control", "policy-base"}
    assert {*results["differences"]} == names | {"policy-grpo", "grpo-sft"}
    seen = results["groups"]["seen tasks"]
    for name in results["differences"]:
        a, b = name.split("-")
        assert seen[name]["mean"] == pytest.approx(seen[a]["mean"] - seen[b]["mean"])
    assert set(results["kl"]) == {"control", "grpo", "policy"}
    assert "policy" in results["learnt"]["ratio"]
    assert "grpo" not in results["learnt"]["ratio"], "it trains on them"
    three = json.loads((chain.folder("eval") / "results.json").read_text())
    assert three["kl"]["policy"] == results["kl"]["policy"]
    assert three["groups"]["seen tasks"]["policy"] == seen["policy"]


def test_a_control_and_an_arm_change_nothing_about_the_other_models(chain: Chain) -> None:
    three = nodes(chain.root)
    five = nodes(chain.root, *LINE)
    for name in three:
        if name not in ("eval", "report"):
            assert five[name].fingerprint == three[name].fingerprint


def test_a_user_names_the_policy_or_its_objective(chain: Chain) -> None:
    by_name = nodes(chain.root, *LINE)
    run = FinishedRun("this run", evaluated_models(by_name), None)
    for role in (Role.dpo, Role.policy):
        assert run.model(role, "chat.model") is by_name["dpo"]
    assert run.model(Role.grpo, "chat.model") is by_name["grpo"]
    ran = inside(*TINY, f"outputs={chain.root}", "stage=chat", "chat.model=control")
    assert "error: chat.model=control" in ran.stderr
