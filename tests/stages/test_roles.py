"""Check that everything that shows results reads the list of evaluated models and their titles."""

import json
import re
import shutil
from pathlib import Path

import pytest

from stages.commands import compare, export
from stages.commands.comparing import measured
from stages.config.choices import Role
from stages.evaluation.intervals import Interval
from stages.store.node import Node
from stages.store.store import Store
from tests.browser import page_faults
from tests.helpers import CHROMIUM, TINY, Chain, browse, build, command, nodes, settings


@pytest.fixture(scope="module")
def four(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Node]]:
    root = tmp_path_factory.mktemp("four") / "outputs"
    shutil.copytree(built, root, symlinks=True)
    build(root, "control=true")
    return root, nodes(root, "control=true")


def test_four_models_are_evaluated_and_differences_taken_between_named_pairs(
    four: tuple[Path, dict[str, Node]],
) -> None:
    root, nodes_by_run = four
    folder = Store(root).folder(nodes_by_run["eval"])
    results = json.loads((folder / "results.json").read_text())
    assert results["models"] == {"base": "Base", "sft": "SFT", "control": "Control", "policy": "DPO"}
    named = {
        "sft-base": "SFT − Base",
        "control-sft": "Control − SFT",
        "policy-sft": "DPO − SFT",
        "policy-control": "DPO − Control",
        "policy-base": "DPO − Base",
    }
    assert results["differences"] == named
    seen = results["groups"]["seen tasks"]
    for name in named:
        a, b = name.split("-")
        assert seen[name]["mean"] == pytest.approx(seen[a]["mean"] - seen[b]["mean"])
    assert set(results["kl"]) == {"control", "policy"}
    assert results["kl"]["control"]["per_token"] != results["kl"]["policy"]["per_token"]
    assert {"sft", "control", "policy", "policy-sft", "policy-control"} <= set(results["references"])
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert list(metrics["pass_rate"]) == [*results["models"]]


def test_a_control_changes_nothing_about_the_other_models(four: tuple[Path, dict[str, Node]]) -> None:
    root, nodes_by_run = four
    three = json.loads((Store(root).folder(nodes(root)["eval"]) / "results.json").read_text())
    with_control = json.loads((Store(root).folder(nodes_by_run["eval"]) / "results.json").read_text())
    for group, row in three["groups"].items():
        for role in three["models"]:
            assert row[role]["mean"] == with_control["groups"][group][role]["mean"]
    assert three["kl"]["policy"] == with_control["kl"]["policy"]
    assert three["verdict"].split("(")[0] == with_control["verdict"].split("(")[0]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_the_report_shows_four_columns_and_four_answers(four: tuple[Path, dict[str, Node]], tmp_path: Path) -> None:
    root, nodes_by_run = four
    page = browse(Store(root).folder(nodes_by_run["report"]) / "report.html", tmp_path, "--dump-dom")
    heads = re.findall(r"<th scope=\"col\">(?:<span[^>]*>.</span> )?([^<]*)</th>", page)
    assert {"Base", "SFT", "Control", "DPO", "SFT − Base", "DPO − SFT", "Control − SFT", "DPO − Control"} <= {*heads}
    results = json.loads((Store(root).folder(nodes_by_run["eval"]) / "results.json").read_text())
    against = Interval(**results["primary"]["policy-control"])
    assert re.search(rf"Against the control, [^<]*{re.escape(against.bounds())}", page)
    prompt = page[page.index('<div class="prompt">') :]
    first = prompt[: prompt.index('<div class="prompt">', 1)]
    assert first.count('<div class="card">') == 4
    assert page_faults(Store(root).folder(nodes_by_run["report"]) / "report.html", tmp_path / "axe") == []


def test_compare_and_cards_read_the_same_list(four: tuple[Path, dict[str, Node]]) -> None:
    root, nodes_by_run = four
    store = Store(root)
    rows = measured.measured_rows(
        store, compare.published_nodes(store), lambda key: key[1] == nodes_by_run["eval"].fingerprint
    )
    row_by_role = {row.role: row for row in rows}
    assert [*row_by_role] == ["sft", "control", "policy"]
    assert row_by_role["policy"].rate == row_by_role["policy"].results["primary"]["policy"]["mean"]
    card = export.evaluation_section(row_by_role["policy"].results)
    assert "|  | prompts | Base" in card
    assert " DPO − SFT | DPO" in card


def test_a_user_names_the_policy_or_dpo(chain: Chain) -> None:
    for name in ("policy", "dpo"):
        assert settings("recipe=tiny", f"chat.model={name}").chat.model is Role.policy
    ran = command(*TINY, f"outputs={chain.root}", "stage=chat", "chat.model=control", input="")
    assert "error: chat.model=control: this run has" in ran.stderr
