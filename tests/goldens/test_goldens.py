"""Tests of the goldens: the parts that every machine can compare, what counts as a difference, and the exit codes.

Every test compares its own refusals; the chains are compared by hand, since a processor's record holds there alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.config.stage_table import STAGES
from tests.goldens import __main__ as goldens
from tests.goldens import chains, fingerprints, records, refusals, rows
from tests.goldens.records import Commands

pytest_plugins = ["pytester"]
SQUARES = {"2": 4, "3": 9}


@pytest.mark.extended
@pytest.mark.parametrize("part", ["configurations", "fingerprints", "rows"])
def test_a_part_is_as_recorded(part: str) -> None:
    comparison = goldens.PARTS[part].check()
    assert comparison.compared > 0
    way_out = f"If this is meant, type: python -m tests.goldens record {part}"
    assert not comparison.differences, "\n".join([*comparison.differences[:50], way_out])


def test_every_recorded_refusal_is_of_a_test_that_is_there(
    pytestconfig: pytest.Config, record_property: Any
) -> None:
    gone = refusals.gone_tests(pytestconfig)
    if gone is None:
        pytest.skip("only a part of the tests was collected")
    record_property(refusals.GONE, gone)
    if not pytestconfig.getoption(refusals.OPTION):
        assert gone == [], f"type: python -m pytest {refusals.OPTION} -k every_recorded_refusal"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with records of its own, and a part `squares` that is as recorded."""
    squares = Commands("squares", lambda: [*SQUARES], lambda lines: {x: int(x) ** 2 for x in lines})
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    monkeypatch.setitem(goldens.PARTS, "squares", squares)
    records.write_record("squares", SQUARES)
    return tmp_path


@pytest.mark.parametrize("content", [None, "", "{}"])
@pytest.mark.parametrize("part", goldens.PARTS)
def test_an_empty_record_compares_nothing(part: str, content: str | None, folder: Path) -> None:
    if content is not None:
        (folder / f"{part}.json").write_text(content)
    assert goldens.check([part]) == goldens.NOTHING_COMPARED
    assert goldens.check(["squares", part]) == goldens.NOTHING_COMPARED


def test_a_record_that_is_not_of_this_machine_compares_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    records.write_record("chains", {chains.PROCESSOR: "another", "stage=eval": {}})
    monkeypatch.setattr(rows, "DATA", folder / "nowhere")
    records.write_record("rows", {rows.READ.format(file="shared/a.jsonl"): {}})
    for part in ("chains", "rows"):
        assert goldens.check([part]) == goldens.NOTHING_COMPARED
        assert caplog.messages[-1].endswith(part)
    assert goldens.check(["squares"]) == 0
    assert goldens.check(["chains", "squares"]) == goldens.NOTHING_COMPARED
    records.write_record("squares", SQUARES | {"2": 5})
    assert goldens.check(["chains", "squares"]) == goldens.DIFFERENT


@pytest.mark.extended
def test_a_suite_that_ran_no_test_compares_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write_record(
        "refusals", {"test_it.py::test_it": {"dpo.beta=abc": "dpo.beta, exit code 1"}}
    )
    monkeypatch.chdir(folder)
    assert goldens.check(["refusals"]) == goldens.NOTHING_COMPARED


@pytest.mark.parametrize(
    ("recorded", "place"), [({"3": 9}, "2"), (SQUARES | {"4": 16}, "4"), (SQUARES | {"3": 8}, "3")]
)
def test_a_command_that_came_went_or_changed_is_a_difference(
    recorded: dict[str, int], place: str, folder: Path
) -> None:
    records.write_record("squares", recorded)
    [line] = goldens.PARTS["squares"].check().differences
    assert line.startswith(f"{place}: ")
    assert goldens.check(["squares"]) == goldens.DIFFERENT
    assert goldens.main("record", ["squares"]) == 0
    assert goldens.check(["squares"]) == 0


def test_a_record_without_a_processor_holds_everywhere(folder: Path) -> None:
    records.write_record("chains", {"stage=eval": {}})
    assert chains.PART.is_of_this_processor()
    records.write_record("chains", {chains.PROCESSOR: chains.processor()})
    assert chains.PART.is_of_this_processor() and chains.PART.recorded() == {}


@pytest.mark.extended
def test_a_setting_in_a_fingerprint_is_named_and_a_raised_number_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprints.describe_graph("recipe=tiny")
    monkeypatch.setitem(STAGES, "dpo", replace(STAGES["dpo"], version=99))
    assert fingerprints.describe_graph("recipe=tiny") == before
    now = fingerprints.describe_graph("recipe=tiny dpo.beta=0.3")
    places = [line.partition(":")[0] for line in records.differences(before, now, ())]
    assert places == ["dpo | beta", "report | (fingerprint)"]
    files = fingerprints.describe_graph("recipe=tiny label=dataset label.path=nowhere.jsonl")
    assert files["label"]["path"] == '"nowhere.jsonl"'


REFUSING = """
from tests.helpers import refused

def test_of_a_key():
    refused("recipe=tiny", "tracker=none", "dpo.beta=abc")

def test_of_nothing():
    pass
"""


@pytest.mark.extended
def test_a_test_fails_whose_refusals_are_not_the_recorded_ones(
    folder: Path, pytester: pytest.Pytester
) -> None:
    def run(*options: str) -> dict[str, int]:
        return pytester.runpytest_inprocess("-p", refusals.__name__, *options).parseoutcomes()

    pytester.makepyfile(test_it=REFUSING)
    assert run() == {"failed": 1, "passed": 1}, "not recorded"
    assert run(refusals.OPTION) == {"passed": 2}
    recorded = {
        "test_it.py::test_of_a_key": {
            "recipe=tiny tracker=none dpo.beta=abc": "dpo.beta, exit code 1"
        }
    }
    assert records.read_record("refusals") == recorded
    assert run() == {"passed": 2}
    pytester.makepyfile(test_it=REFUSING.replace("dpo.beta=abc", "sft.epochs=abc"))
    assert run() == {"failed": 1, "passed": 1}, "another refusal"
    pytester.makepyfile(test_it=REFUSING.replace("    refused(", "    print("))
    assert run() == {"failed": 1, "passed": 1}, "the refusal has vanished"
    assert run(refusals.OPTION) == {"passed": 2}
    assert records.read_record("refusals") == {}
