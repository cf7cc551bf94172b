"""Check that everything that shows results reads the list of evaluated models and their titles."""

from stages.commands.finished_run import FinishedRun
from stages.config.choices import Role
from stages.pipeline.evaluation_graph import evaluated_models
from tests.helpers import Chain, nodes

LINE = ("control=true", "arms=[grpo]", "grpo.evaluations=0")


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


def test_only_a_model_that_sft_trained_is_called_sft(chain: Chain) -> None:
    trained = nodes(chain.root)["eval"].config.models
    given = nodes(chain.root, "sft=none")["eval"].config.models
    assert (trained["sft"], given["sft"]) == ("SFT", "Start")
