"""The commands that tests expect to be refused: by test and command, the key that the error names and the exit code.

This is a plugin of pytest. When a test has passed, its refusals are compared with the record, and it fails if one has
vanished, changed or come without being recorded. `--record-refusals` records those of the tests that run.
"""

from collections.abc import Iterator

import pytest

from stages.config.installation import ROOT
from tests import helpers
from tests.goldens.names import named_key, without_folders, without_places
from tests.goldens.records import (
    Comparison,
    differences,
    gone_line,
    new_line,
    read_record,
    write_record,
)

NAME = "refusals"
OPTION = "--record-refusals"
# properties of a test's report
NOTED = "refusals"
GONE = "recorded tests that are gone"
RECORDED = pytest.StashKey[dict[str, dict[str, str]]]()
COLLECTED = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="record the refusals of the tests that run")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORDED] = read_record(NAME)
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist
    if config.getoption(OPTION) and not is_worker:
        config.pluginmanager.register(Recorder())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember all tests, before marks and keywords deselect some."""
    config.stash[COLLECTED] = {name_of(item) for item in items}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Compare the refusals of a test that has passed. Those of slow tests are not recorded."""
    helpers.refusals.clear()
    yield
    if item.get_closest_marker("slow"):
        return
    noted = by_command(helpers.refusals)
    helpers.refusals.clear()
    item.user_properties.append((NOTED, noted))
    if item.config.getoption(OPTION):
        return
    recorded = item.config.stash[RECORDED].get(name_of(item), {})
    lines = [*differences(recorded, noted, ())]
    if lines:
        file = item.nodeid.partition("::")[0]
        way_out = f"If this is meant, type: python -m pytest {OPTION} {file}"
        message = "\n".join(["refusals are not the recorded ones:", *lines, way_out])
        pytest.fail(message, pytrace=False)


class Ledger:
    """Collects the refusals by test from the reports of all processes, and the recorded tests that are gone."""

    def __init__(self) -> None:
        self.noted = dict[str, dict[str, str]]()
        self.gone = list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        properties = dict(report.user_properties)
        if NOTED in properties:
            self.noted[without_places(report.nodeid)] = properties[NOTED]
        self.gone += properties.get(GONE, [])


class Recorder(Ledger):
    """Writes the record at the end of a run. Tests that did not run keep their entries."""

    def pytest_sessionfinish(self) -> None:
        outcomes = read_record(NAME) | self.noted
        refusing = [test for test in sorted(outcomes) if outcomes[test] and test not in self.gone]
        write_record(NAME, {test: outcomes[test] for test in refusing})


class Refusals:
    """The part that the suite compares in every run. As a part, it is compared by a run of the whole suite."""

    name = NAME

    def record(self) -> None:
        run_suite(OPTION)

    def check(self) -> Comparison:
        recorded = read_record(NAME)
        ledger = Ledger()
        if recorded:
            run_suite(plugins=[ledger])
        compared = recorded.keys() & ledger.noted.keys()
        lines = [gone_line(test) for test in ledger.gone]
        refusing = [test for test, noted in ledger.noted.items() if noted]
        lines += [new_line(test) for test in refusing if test not in recorded]
        for test in sorted(compared):
            lines += differences(recorded[test], ledger.noted[test], (test,))
        left_out = len(recorded) - len(compared) - len(ledger.gone)
        reason = f"{left_out} tests did not run, or failed otherwise" if left_out else ""
        return Comparison(len(compared), lines, reason)


def run_suite(*options: str, plugins: list[Ledger] | None = None) -> None:
    """Run all tests that are not slow."""
    pytest.main(["-n", "2", "--dist", "worksteal", "-m", "not slow", *options], plugins)


def gone_tests(config: pytest.Config) -> list[str] | None:
    """Return the recorded tests that a run of the whole suite does not collect; None if only a part was collected."""
    places = {(config.invocation_params.dir / arg).resolve() for arg in config.args}
    if places.isdisjoint({ROOT, ROOT / "tests"}):
        return None
    return [test for test in config.stash[RECORDED] if test not in config.stash[COLLECTED]]


def name_of(item: pytest.Item) -> str:
    return without_places(item.nodeid)


def by_command(refusals: list[helpers.Refusal]) -> dict[str, str]:
    """Return the outcomes of each command, sorted: the named key, or none, with the exit code."""
    outcomes = dict[str, set[str]]()
    for refusal in refusals:
        command = without_folders(" ".join(map(str, refusal.arguments)))
        message = refusal.message.removeprefix("error: ")
        key = named_key(without_folders(message)) or "no key"
        outcomes.setdefault(command, set()).add(f"{key}, exit code {refusal.exit_code}")
    return {command: "; ".join(sorted(outcomes[command])) for command in sorted(outcomes)}


PART = Refusals()
