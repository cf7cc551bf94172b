"""Suites in a run of real stages: nodes of their own, results with intervals, a section of the report."""

import json

import pytest

from stages.extras.suites import FORMS, SUITES
from stages.models.chat_templates import in_form
from stages.models.contract import load_contract
from tests.helpers import Chain, build, nodes, refused

WITH_SUITES = ("eval/suites=all", "eval.suites.pairs=10")


@pytest.mark.extended
def test_suites_have_nodes_of_their_own_and_a_section_of_the_report(
    chain: Chain,
) -> None:
    root = chain.root
    before = nodes(root)
    after = nodes(root, *WITH_SUITES)
    added = {f"answer_suites_{role}" for role in ("base", "sft", "policy")} | {"suites"}
    added |= {f"answer_{form}_{role}" for form in FORMS for role in ("sft", "policy")}
    assert {*after} - {*before} == added
    changed = {name for name, node in before.items() if node.fingerprint != after[name].fingerprint}
    assert changed == {"eval", "report"}
    build(root, *WITH_SUITES)
    results = json.loads((chain.folder("eval", *WITH_SUITES) / "results.json").read_text())
    assert [*results["suites"]] == [*SUITES]
    for suite in results["suites"].values():
        for row in (suite["score"], suite["fault"], *suite["parts"].values()):
            assert row["prompts"] == 10
            for name in ("policy", "policy-sft"):
                assert row[name]["low"] <= row[name]["mean"] <= row[name]["high"]
    page = (chain.folder("report", *WITH_SUITES) / "report.html").read_text()
    assert '<section id="suites">' in page
    assert all(suite["title"] in page for suite in results["suites"].values())


def test_a_form_that_is_the_models_own_is_replaced(chain: Chain) -> None:
    model = chain.folder("sft") / "model"
    messages = [{"role": "user", "content": "Name a colour."}]
    zephyr = in_form(load_contract(model), "zephyr")
    assert "<|user|>\nName a colour." in zephyr.tokenizer.decode(zephyr.prompt(messages))
    assert zephyr.text(zephyr.tokenizer("Blue.<|user|>").input_ids) == "Blue."
    replaced = in_form(zephyr, "zephyr")
    assert replaced.tokenizer.decode(replaced.prompt(messages)).startswith("<|im_start|>user")


def test_an_unknown_suite_is_refused() -> None:
    assert "eval.suites.names" in refused("eval.suites.names=[refusals]")
