"""Reports of runs that are not the whole chain: no objective, or the user's preferences. A part that a run lacks has no
section."""

import json
import re
from pathlib import Path

import pytest

from stages.evaluation.measures import FAVOURED, FILE, Measure
from stages.store.records import load
from tests.browser import page_faults
from tests.helpers import Chain, build

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


@pytest.mark.extended
def test_a_run_without_an_objective_has_nothing_of_pairs(chain: Chain, tmp_path: Path) -> None:
    (chain.root / "labels.html").unlink()
    build(chain.root, "align=none")
    results = json.loads((chain.root / "latest/eval/results.json").read_text())
    page = sections(chain.root / "report.html")
    assert results["models"] == {"base": "Base", "policy": "SFT"}
    assert WHOLE_CHAIN & {*page} == {"curves"}
    assert results["verdict"] in page[""] and "trained on 256 demonstrations" in page[""]
    assert not (chain.root / "labels.html").exists()
    assert page_faults(chain.root / "report.html", tmp_path) == []


@pytest.mark.extended
def test_preferences_of_ones_own_are_told_by_held_out_pairs(chain: Chain, tmp_path: Path) -> None:
    """A run without SFT and without generated tasks."""
    line = (
        "sft=none",
        "model.random_init=null",
        f"model.path={chain.folder('sft') / 'model'}",
        *PREFERENCES,
        *NO_TASKS,
        "pairs.validation_fraction=0.3",
        "dpo.learning_rate=1e-3",
    )
    build(chain.root, *line)
    page = sections(chain.root / "report.html")
    results = json.loads((chain.folder("eval", *line) / "results.json").read_text())
    assert results["gives_verdict"] == ["learnt"] and results["primary"] is None
    assert not {"results", "kinds", "judged", "retention", "outside"} & {*page}
    learnt = results["learnt"]
    measured = load(chain.folder("eval", *line) / FILE, Measure)
    for role in ("sft", "policy"):
        favoured = [m for m in measured if (m.measure, m.role) == (FAVOURED, role)]
        assert len(favoured) == learnt["pairs"]
    assert f"{learnt['ratio']['policy']['mean']:.1%}" in page["learnt"]
    assert results["verdict"] in page[""]
    assert "SFT was trained" not in page[""]
    assert page_faults(chain.root / "report.html", tmp_path) == []
