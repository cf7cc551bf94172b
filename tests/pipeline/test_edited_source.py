"""Tests of runs with an edited source: what is built again, and what says so."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from stages.cli.main import log_edited_stages
from stages.commands.expected_costs import Forecast
from stages.commands.node_settings import lineage_settings
from stages.commands.plan import plan_nodes
from stages.commands.plan_result import PlannedNode
from stages.config.errors import UserError
from stages.launch import job_file
from stages.store import stage_sources
from stages.store.manifest import manifest_of
from stages.store.node import Node, PublishedNode, published_node
from stages.store.stage_sources import EditedSource, Sources
from stages.store.store import Store
from stages.store.workspace import StageDir
from tests.helpers import TINY, Chain, build, inside, nodes
from tests.store.checkout import LOSS, OTHER_LOSS, content

AFTER_DPO = {"dpo", "answer_policy", "eval", "report"}


def use(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the source of a package as it is now."""
    now = Sources(package)
    monkeypatch.setattr(stage_sources, "of_process", lambda: now)


def changed_nodes(graph: dict[str, Node], other: dict[str, Node]) -> set[str]:
    return {name for name in graph if graph[name].fingerprint != other[name].fingerprint}


def planned_nodes(graph: dict[str, Node], root: Path) -> list[PlannedNode]:
    store = Store(root)
    return plan_nodes(graph, store, Forecast(graph, store)).nodes


def test_an_edited_objective_is_built_again_with_what_follows_until_the_edit_is_undone(
    built: Path,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded = nodes(built)
    dpo = package / "objectives/dpo.py"
    text = dpo.read_text()
    with content(dpo, text.replace(LOSS, OTHER_LOSS)):
        use(package, monkeypatch)
        edited = nodes(built)
        assert changed_nodes(recorded, edited) == AFTER_DPO
        planned = {node.name: node for node in planned_nodes(edited, built)}
        assert {name for name, node in planned.items() if node.state == "to build"} == AFTER_DPO
        [reason] = planned["dpo"].changes
        assert reason.startswith("edited") and "objectives/dpo.py" in reason
        assert planned["answer_policy"].changes == ["input model"]
        with caplog.at_level(logging.INFO):
            log_edited_stages(edited)
        assert caplog.messages == ["dpo: edited (objectives/dpo.py)"]
    with content(dpo, f"# a comment\n{text}"):
        use(package, monkeypatch)
        assert not changed_nodes(recorded, nodes(built))
    use(package, monkeypatch)
    undone = nodes(built)
    assert not changed_nodes(recorded, undone)
    assert {node.state for node in planned_nodes(undone, built)} == {"cached"}


def test_an_edited_method_of_settings_changes_its_stage(
    built: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = package / "config/blocks/training.py"
    edited = training.read_text().replace("self.beta / 2 if", "self.beta / 3 if")
    recorded = nodes(built)
    with content(training, edited):
        use(package, monkeypatch)
        assert changed_nodes(recorded, nodes(built)) == AFTER_DPO


@pytest.mark.extra("ray")
def test_an_edited_extra_edits_the_stages_that_it_runs_and_a_removed_one_edits_none(
    built: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = nodes(built)
    cluster = package / "extras/ray/cluster.py"
    with content(cluster, f"{cluster.read_text()}\nOURS = 1\n"):
        use(package, monkeypatch)
        edited = nodes(built)
        assert changed_nodes(recorded, edited) == {*recorded}
        assert edited["dpo"].edited and edited["dpo"].edited.files == ["extras/ray/cluster.py"]
    aside = cluster.parent.rename(package.parent / "ray")
    use(package, monkeypatch)
    assert not changed_nodes(recorded, nodes(built))
    aside.rename(cluster.parent)


def test_stages_with_the_same_edited_files_have_one_line(caplog: pytest.LogCaptureFixture) -> None:
    files = [f"models/{name}.py" for name in "abcdefg"]
    graph = {}
    for name, stage in {"sft": "sft", "control": "sft", "dpo": "dpo", "kto": "kto"}.items():
        edited = EditedSource(stage, files if stage != "kto" else files[:1])
        graph[name] = Node(stage, 1, None, edited=edited)
    with caplog.at_level(logging.INFO):
        log_edited_stages({**graph, "data": Node("data", 1, None)})
    first, second = caplog.messages
    assert first.startswith("sft, dpo: edited (models/a.py, ") and "2 more" in first
    assert second == "kto: edited (models/a.py)"


@pytest.mark.extra("doctor", "gc")
@pytest.mark.extended
def test_a_node_of_an_edited_source_says_so_and_stays_readable(
    chain: Chain, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = package / "pairs.py"
    recorded = nodes(chain.root)["pairs"]
    edited = f"{pairs.read_text()}\nOURS = 1\n"
    with content(pairs, edited), monkeypatch.context() as during_edit:
        use(package, during_edit)
        build(chain.root, "stage=pairs")
        node = nodes(chain.root)["pairs"]
    store = Store(chain.root)
    manifest = manifest_of(store.folder(node))
    assert (
        manifest["edited"]
        == asdict(node.edited)
        == {"digest": node.edited.digest, "files": ["pairs.py"]}
    )
    assert any("pairs.py" in warning for warning in manifest["warnings"])
    assert "edited" not in manifest_of(store.folder(recorded))
    # code without the edit reads the node, but does not use it
    assert store.state(nodes(chain.root)["pairs"]) == "cached"
    read = published_node(chain.root, "pairs", node.fingerprint, {})
    assert isinstance(read, PublishedNode) and read.fingerprint == node.fingerprint
    assert read.edited == node.edited
    assert "pairs.py" in lineage_settings([manifest])["pairs.edited"]
    doctor = inside("stage=doctor", f"outputs={chain.root}")
    assert doctor.returncode == 0, doctor.stderr
    listed = inside("stage=gc", f"outputs={chain.root}").stdout
    assert recorded.fingerprint not in listed


def test_a_stage_that_was_edited_after_the_start_is_not_run(
    chain: Chain, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(package, monkeypatch)
    sources = {"pairs": stage_sources.of_process().digest("pairs")}
    pairs = package / "pairs.py"
    with content(pairs, f"{pairs.read_text()}\nOURS = 1\n"):
        with pytest.raises(UserError, match=r"pairs: .*pairs\.py"):
            build(chain.root, "stage=pairs", "pairs.min_margin=0.3")
        job = {"stage": "stages.pairs", "sources": sources}
        with pytest.raises(UserError, match=r"pairs: .*pairs\.py"):
            job_file.run_stage(job, StageDir(tmp_path, lambda metrics, step: None))


@pytest.mark.extended
def test_the_command_of_an_edited_checkout_reuses_nothing_of_the_edited_stage(
    built: Path, package: Path
) -> None:
    command = [sys.executable, str(package.parent / "run.py"), *TINY, f"outputs={built}"]
    dpo = package / "objectives/dpo.py"
    states = []
    for factor in (LOSS, OTHER_LOSS):
        with content(dpo, dpo.read_text().replace(LOSS, factor)):
            ran = subprocess.run(
                [*command, "stage=plan", "--json"],
                cwd=package.parent,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
        lines = (ran.stdout + ran.stderr).splitlines()
        assert lines.count("dpo: edited (objectives/dpo.py)") == (factor == OTHER_LOSS)
        result = json.loads(ran.stdout)["result"]
        states.append({node["name"]: node["state"] for node in result["nodes"]})
    assert {*states[0].values()} == {"cached"}
    assert {name for name, state in states[1].items() if state != "cached"} == AFTER_DPO
