"""Reports of runs that are not the whole chain: no objective, two folders, judged answers, the user's preferences. A
part that a run lacks has no section, and no sentence of a page is untrue of the run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.commands.compare import published_nodes
from stages.commands.comparing.measured import measured_rows
from stages.evaluation.measures import FAVOURED, FILE, Measure
from stages.store.records import load
from stages.store.store import Store
from tests.browser import page_faults
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build, nodes
from tests.labelers.judging import judging

pytest.importorskip("openai")
pytest.importorskip("starlette")
NO_TASKS = tuple(
    f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks", "rephrased")
)
PREFERENCES = (
    "label=dataset",
    "label.path=package:stages/tasks/toy_preferences.jsonl",
    "pairs=all",
)
# sections of parts that some runs lack
WHOLE_CHAIN = {"why", "labels", "curves", "learnt", "judged"}


def sections(page: Path) -> dict[str, str]:
    """Return the text of each section of a page; '' is the text above them."""
    head, *parts = page.read_text(encoding="utf-8").partition("<body>")[2].split('<section id="')
    named = {part.partition('"')[0]: part.partition(">")[2] for part in parts}
    return {
        name: " ".join(re.sub(r"<[^>]+>", " ", part).split())
        for name, part in {"": head, **named}.items()
    }


def reported(chain: Chain, *line: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Build the report of a command line, and return its sections and the results of the evaluation."""
    build(chain.root, *line)
    results = json.loads((chain.root / "latest/eval/results.json").read_text())
    return sections(chain.root / "report.html"), results


@pytest.mark.extended
def test_a_run_without_an_objective_has_nothing_of_pairs(chain: Chain, tmp_path: Path) -> None:
    (chain.root / "labels.html").unlink()
    page, results = reported(chain, "align=none")
    assert results["models"] == {"base": "Base", "policy": "SFT"}
    assert WHOLE_CHAIN & {*page} == {"curves"}
    assert results["verdict"] in page[""] and "trained on 256 demonstrations" in page[""]
    assert "DPO" not in "".join(
        words for name, words in page.items() if name not in ("words", "lineage")
    )
    assert "stage=chat" in page[""] and "&#39;seeds=[1,2]&#39;" in page[""]
    assert not (chain.root / "labels.html").exists(), "no labels, no page of them"
    assert page_faults(chain.root / "report.html", tmp_path) == []


@pytest.mark.extended
def test_two_folders_are_models_as_they_came(chain: Chain, tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for name, folder in (("sft", one), ("dpo", two)):
        shutil.copytree(chain.folder(name) / "model", folder)
    line = (
        "sft=none",
        "align=none",
        "model.random_init=null",
        f"model.path={one}",
        f"eval.judged.against=[{two}]",
    )
    page, results = reported(chain, *line)
    assert (
        results["models"] == {"other": "two", "policy": "one"}
        and results["main_difference"] == "policy-other"
    )
    assert not WHOLE_CHAIN & {*page}
    assert "two and one are models" in page[""] and "nothing here was trained on" in page[""]
    assert "seed" not in page[""]
    assert "parameters against two, 0.2 M" in page["settings"]
    assert page_faults(chain.root / "report.html", tmp_path / "browser") == []
    rows = measured_rows(store := Store(chain.root), published_nodes(store), None)
    assert {"sft", "policy"} <= {row.role for row in rows}, (
        "stage=compare reads this store's evaluations"
    )


@pytest.mark.extended
def test_what_was_judged_stands_beside_the_checks_with_answers(
    chain: Chain, tmp_path: Path
) -> None:
    longest = judging(lambda texts: max("AB", key=lambda side: (len(texts[side]), texts[side])))
    with running(Model(longest)) as judge:
        endpoint = f"eval.judged.endpoints=[{{base_url: '{judge.url}', model: judge}}]"
        line = (
            "eval/judged=judge",
            endpoint,
            "eval.judged.against=[sft,reference]",
            "eval.judged.prompts=40",
        )
        page, results = reported(chain, *line)
    for comparison in results["judged"].values():
        assert f"{comparison['win_rate']['mean']:.1%}" in page["judged"]
    judged = {
        word: int(n)
        for word, n in re.findall(
            r"Judged (better than|a tie with|worse than) SFT: (\d+)", page["answers"]
        )
    }
    assert (
        sum(judged.values()) == results["judged"]["sft"]["judged"]
        and judged["a tie with"] == results["judged"]["sft"]["ties"]
    )
    assert "that DPO gets right" in page["answers"], "checks are not hidden"
    assert page_faults(chain.root / "report.html", tmp_path) == []


@pytest.fixture(scope="module")
def brought(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, tuple[str, ...]]:
    """A run on the user's own preferences, without SFT and without generated tasks."""
    root = tmp_path_factory.mktemp("brought") / "outputs"
    shutil.copytree(built, root, symlinks=True)
    chain = Chain(root)
    start = ("sft=none", "model.random_init=null", f"model.path={chain.folder('sft') / 'model'}")
    line = (
        *start,
        *PREFERENCES,
        *NO_TASKS,
        "pairs.validation_fraction=0.3",
        "dpo.learning_rate=1e-3",
    )
    build(root, *line)
    return chain, line


def test_where_no_pair_is_held_out_the_tests_are_answered_alone(tmp_path: Path) -> None:
    for fraction, own in ((0.1, True), (0, False)):
        graph = nodes(tmp_path, *PREFERENCES, f"pairs.validation_fraction={fraction}")
        assert "answer_policy" in graph and ("answer_held_out_policy" in graph) is own


@pytest.mark.extended
def test_preferences_of_ones_own_are_told_by_held_out_pairs(
    brought: tuple[Chain, tuple[str, ...]], tmp_path: Path
) -> None:
    chain, line = brought
    page = sections(chain.root / "report.html")
    results = json.loads((chain.folder("eval", *line) / "results.json").read_text())
    assert results["gives_verdict"] == ["learnt"] and results["primary"] is None
    assert not {"results", "kinds", "judged", "retention", "outside"} & {*page}
    learnt = results["learnt"]
    measured = load(chain.folder("eval", *line) / FILE, Measure)
    assert sum(m.measure == FAVOURED for m in measured) == learnt["pairs"], (
        "the gate compares what gives the verdict"
    )
    assert (
        f"{learnt['ratio']['policy']['mean']:.1%}" in page["learnt"]
        and f"{learnt['pairs']} held-out pairs" in page["learnt"]
    )
    assert f"{learnt['longer']['mean']:.1%}" in page["learnt"] and learnt["note"] in page["learnt"]
    assert "eval/judged=judge" in page[""] and "stage=eval" not in page[""]
    assert f"{learnt['prompts']} prompts of held-out pairs" in page["answers"]
    assert "the prompts of held-out pairs" in page["proportion"] and results["verdict"] in page[""]
    of_others = (
        "SFT was trained",
        "demonstrations",
        "trained to write the answers",
        "task that",
        "data.tasks.test",
    )
    text = " ".join(
        words for name, words in page.items() if name not in ("lineage", "words", "why")
    )
    assert [words for words in of_others if words in text] == []
    assert page_faults(chain.root / "report.html", tmp_path) == []
