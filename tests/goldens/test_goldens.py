"""Tests of the goldens: the parts that are cheap are compared here, `refusals` by every test, `chains` by hand."""

import json
import logging
from pathlib import Path

import pytest

from tests.goldens import __main__ as goldens
from tests.goldens import chains, records, refusals, rows
from tests.goldens.records import Commands


@pytest.mark.extended
@pytest.mark.parametrize("part", ["configurations", "fingerprints", "rows"])
def test_a_part_is_as_recorded(part: str) -> None:
    comparison = goldens.PARTS[part].check()
    assert comparison.compared > 0
    way_out = f"If this is meant, type: python -m tests.goldens record {part}"
    assert not comparison.differences, "\n".join([*comparison.differences[:50], way_out])


@pytest.mark.slow
def test_chains_are_as_recorded_on_this_processor() -> None:
    if not chains.PART.is_of_this_processor():
        pytest.skip("recorded on another processor")
    assert chains.PART.check().differences == []


def test_every_recorded_refusal_is_of_a_test_that_is_there(
    pytestconfig: pytest.Config, record_property: pytest.FixtureRequest
) -> None:
    gone = refusals.gone_tests(pytestconfig)
    if gone is None:
        pytest.skip("only a part of the tests was collected")
    record_property(refusals.GONE, gone)
    assert pytestconfig.getoption(refusals.OPTION) or gone == []
