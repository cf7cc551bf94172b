"""A comparison that people judge: the report does not wait for it."""

from pathlib import Path

import pytest

from tests.extras.human.asking import somebody
from tests.helpers import Chain, build
from tests.stages.test_judged import own_prompts, results

PEOPLE = ["eval/judged=human", "eval.judged.runtime.port=0"]


@pytest.mark.extended
def test_a_report_does_not_wait_for_people_and_reads_what_they_said(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = [*PEOPLE, own_prompts(tmp_path, chain, 40)]
    waiting = results(chain, *typed)
    row = waiting["judged"]["sft"]
    assert row["waiting"] == row["prompts"] - row["alike"] > 0
    with somebody(monkeypatch, lambda question: "a"):
        build(chain.root, "stage=versus", *typed)
    row = results(chain, *typed)["judged"]["sft"]
    assert "waiting" not in row and row["judged"] == row["prompts"] and not row["missing"]
