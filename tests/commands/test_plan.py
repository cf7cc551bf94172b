"""The nodes and the changes of a plan, without a forecast."""

from pathlib import Path

import pytest

from stages.commands import plan
from stages.commands.expected_costs import Forecast
from stages.store.store import Store
from tests.helpers import TINY, Chain, inside, nodes, refused


def test_what_a_run_refuses_to_evaluate_is_not_planned(tmp_path: Path) -> None:
    untested = [f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks")]
    line = (*TINY, f"outputs={tmp_path}", *untested, "pairs.validation_fraction=0")
    ran = inside(*line, "stage=plan")
    assert ran.returncode == 0, ran.stderr
    output = " ".join(ran.stdout.split())
    assert f"Not planned: answer, versus, eval, report. {refused(*line)}" in output
    assert {line.split()[0] for line in ran.stdout.splitlines() if "to build" in line} == {
        *("base", "data", "sft", "sample", "label", "pairs", "reference", "dpo")
    }


def test_without_a_forecast_a_plan_shows_nodes_and_changes_alone(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = nodes(chain.root, "dpo.beta=0.7")
    store = Store(chain.root)
    result = plan.plan_nodes(graph, store, Forecast(graph, store))
    states = {node.name: node.state for node in result.nodes}
    assert states["sft"] == "cached" and states["dpo"] == "to build"
    result.show()
    shown = capsys.readouterr().out
    assert "beta 0.1 -> 0.7" in shown
    assert "memory" not in shown and "time" not in shown
    to_build = [name for name, state in states.items() if state != "cached"]
    assert result.sentences == [f"To build: {len(to_build)} nodes."]
