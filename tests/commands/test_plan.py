"""What a plan expects, and how it names what changed."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from stages.commands import plan
from stages.config.schema import ROOT
from stages.pipeline.graph import graph
from stages.store.store import Store
from tests.helpers import Chain, build, nodes, settings


def expected(root: Path, name: str, *overrides: str) -> plan.Cost:
    store, planned = Store(root), nodes(root, *overrides)
    return plan.expected(planned[name], planned, store, plan.Earlier(store))


def test_plan_counts_the_pairs_that_there_are(chain: Chain) -> None:
    """`pairs=all` makes more of them; once they are there, DPO is expected to take as much longer."""
    build(chain.root, "stage=pairs", "pairs=all")
    before, after = (chain.manifest("pairs", *more)["metrics"] for more in ((), ("pairs=all",)))
    wanted = (after["pairs"] - after["held_out"]) / (before["pairs"] - before["held_out"])
    assert wanted > 1.1
    spent = chain.manifest("dpo")["wall_seconds"]
    assert expected(chain.root, "dpo", "pairs=all").seconds == pytest.approx(spent * wanted)


def test_plan_expects_of_dpo_the_speed_that_sft_had(chain: Chain) -> None:
    """Of another stage on the same model, before there is a node of its own."""
    shutil.rmtree(chain.root / "dpo")
    shutil.rmtree(chain.root / "reference")
    sft, made = chain.manifest("sft"), chain.manifest("pairs")["metrics"]
    cost = expected(chain.root, "dpo")
    assert cost.rough
    read = sft["metrics"]["tokens"] / (256 * 4)  # of a conversation
    tokens = (made["pairs"] - made["held_out"]) * read * plan.TOKENS_PER_ROW["dpo"] / plan.TOKENS_PER_ROW["sft"]
    assert cost.tokens == pytest.approx(tokens, abs=1)
    assert cost.seconds == pytest.approx(sft["wall_seconds"] * tokens / sft["metrics"]["tokens"], rel=0.01)


def test_plan_expects_of_the_demo_about_what_it_took(tmp_path: Path) -> None:
    """As docs/results.md has it, on two cores in bf16."""
    store = Store(tmp_path)
    cfg = replace(settings("precision=bf16"), outputs=str(tmp_path))
    planned = graph(cfg, tmp_path / "cache" / "digests.json")
    with mock.patch("os.cpu_count", lambda: 2):
        costs = {name: plan.expected(node, planned, store, plan.Earlier(store)) for name, node in planned.items()}
    took = {"sft": 103, "sample": 91, "dpo": 190, "answer_policy": 211 / 3}
    assert {name: costs[name].seconds for name in took} == pytest.approx(took, rel=0.25)


def test_plan_does_not_know_the_rows_of_files_before_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Name a colour.", "completion": "red"}\n')
    cost = expected(tmp_path / "outputs", "sft", "data=file", f"data.sources=[{{path: {file}}}]")
    assert cost.tokens is None and math.isnan(cost.seconds)


def test_plan_names_files_and_says_where_only_the_content_differs(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jsonl"
    toys = (ROOT / "stages/tasks/toy_preferences.jsonl").read_text()

    def told(content: str, name: str = "mine.jsonl") -> str:
        (tmp_path / name).write_text(content)
        entered = ("label=dataset", f"label.path={tmp_path / name}")
        planned = nodes(chain.root, *entered)
        plan.show(planned, Store(chain.root))
        return " ".join(capsys.readouterr().out.split())

    assert "path – -> mine.jsonl" in told(toys)
    build(chain.root, "stage=label", "label=dataset", f"label.path={mine}")
    assert "path mine.jsonl: its content" in told(toys.replace("a", "b", 1))
    assert "path mine.jsonl -> other.jsonl" in told(toys + "\n", "other.jsonl")
