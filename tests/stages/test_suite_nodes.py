"""Suites in a run of real stages: nodes of their own, results with intervals, a section of the report."""

import json
import shutil
from pathlib import Path

import pytest

from stages.config.blocks.evaluation import FORMS
from stages.config.choices import SUITES
from stages.evaluation.asked import read_prompts
from stages.models.chat_templates import in_form, other_form
from stages.models.contract import load_contract
from stages.store.records import Candidate, load
from tests.helpers import TINY, Chain, build, inside, nodes, refused

WITH_SUITES = ("eval/suites=all", "eval.suites.pairs=10")


@pytest.mark.extended
def test_suites_have_nodes_of_their_own_and_a_section_of_the_report(
    built: Path, tmp_path: Path
) -> None:
    root = tmp_path / "outputs"
    shutil.copytree(built, root, symlinks=True)
    before, after = nodes(root), nodes(root, *WITH_SUITES)
    added = {f"answer_suites_{role}" for role in ("base", "sft", "policy")} | {"suites"}
    added |= {f"answer_{form}_{role}" for form in FORMS for role in ("sft", "policy")}
    assert {*after} - {*before} == added
    changed = {name for name, node in before.items() if node.fingerprint != after[name].fingerprint}
    assert changed == {"eval", "report"}
    build(root, *WITH_SUITES)
    chain = Chain(root)
    results = json.loads((chain.folder("eval", *WITH_SUITES) / "results.json").read_text())
    assert [*results["suites"]] == [*SUITES]
    for suite in results["suites"].values():
        for row in (suite["score"], suite["fault"], *suite["parts"].values()):
            assert row["prompts"] == 10
            assert row["policy"]["low"] <= row["policy"]["mean"] <= row["policy"]["high"]
            assert (
                row["policy-sft"]["low"] <= row["policy-sft"]["mean"] <= row["policy-sft"]["high"]
            )
    page = (chain.folder("report", *WITH_SUITES) / "report.html").read_text()
    assert '<section id="suites">' in page
    assert all(suite["title"] in page for suite in results["suites"].values())
    assert '<section id="suites">' not in (chain.folder("report") / "report.html").read_text()
    for stage in ("plan", "compare"):
        assert inside(*TINY, *WITH_SUITES, f"outputs={root}", f"stage={stage}").returncode == 0


@pytest.mark.extended
def test_another_form_asks_only_its_suite_and_writes_no_token_of_the_models_own_template(
    chain: Chain,
) -> None:
    overrides = (
        "eval/suites=all",
        "eval.suites.names=[templates,refusal]",
        "eval.suites.pairs=12",
        "stage=answer",
    )
    build(chain.root, *overrides)
    wired = nodes(chain.root, *overrides)
    prompts = {
        e.id: e for e in read_prompts({"data": chain.root / "data" / wired["suites"].fingerprint})
    }
    for name, count in (
        ("answer_suites_policy", 36),
        ("answer_llama3_policy", 12),
        ("answer_text_policy", 12),
    ):
        answers = load(
            chain.root / "answer" / wired[name].fingerprint / "answers.parquet", Candidate
        )
        assert len(answers) == count
        assert {a.prompt_id for a in answers} <= {*prompts}


def test_a_form_that_is_the_models_own_is_replaced(chain: Chain) -> None:
    model, messages = chain.folder("sft") / "model", [{"role": "user", "content": "Name a colour."}]
    texts = dict[str, str]()
    for form in FORMS:
        contract = in_form(load_contract(model), form)
        texts[form] = contract.tokenizer.decode(contract.prompt(messages))
    assert "<|user|>\nName a colour." in texts["zephyr"]
    assert "<|start_header_id|>user<|end_header_id|>\n\nName a colour.<|eot_id|>" in texts["llama3"]
    assert texts["text"].endswith("Question: Name a colour.\n\nAnswer:")
    zephyr = in_form(load_contract(model), "zephyr")
    assert zephyr.text(zephyr.tokenizer("Blue.<|user|>").input_ids) == "Blue."
    replaced = in_form(zephyr, "zephyr")
    assert replaced.tokenizer.decode(replaced.prompt(messages)).startswith("<|im_start|>user")
    own = in_form(load_contract(model), "zephyr").tokenizer
    assert [other_form(own, form) for form in ("zephyr", "llama3", "text")] == [
        "chatml",
        "llama3",
        "text",
    ]


def test_an_unknown_suite_is_refused() -> None:
    assert "eval.suites.names" in refused("eval.suites.names=[refusals]")
    assert "eval.suites.pairs=5" in refused("eval/suites=all", "eval.suites.pairs=5")
    assert "data.suites" in refused("data.suites={names: [refusal]}")
