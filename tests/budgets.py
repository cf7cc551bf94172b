"""Budgets for the processor time of tests, per folder of tests/ (a room), with a table after every run.

CPU-seconds are the user's and the system's time of the test process and of its finished children, so other work on the
machine adds little. Session fixtures have their own line, since any room may be the first to use one. Tests marked slow
have no budget.

With `--budget-factor=F`, as in `.ci/run`, the run fails if a room takes more than F times its budget. Before raising a
budget, make the room cheaper: a process that loads TRL takes five seconds, a training half a second, and the shared
store `built` nothing. A budget is about 1.5 times the measured time.
"""

import resource
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

START, FIXTURES, HOUSE, SLOW = "start", "session fixtures", "tests", "slow"

BUDGETS = {
    START: 100.0,  # all imports of pytest, torch, TRL and the tests
    FIXTURES: 80.0,  # two chains, each built by a command
    HOUSE: 80.0,  # files directly in tests/: each extra is removed in a copy
    "stages": 300.0,
    "cli": 300.0,  # compositions
    "pipeline": 200.0,
    "commands": 82.0,
    "extras": 150.0,
    "goldens": 135.0,
    "launch": 70.0,
    "training": 70.0,
    "docs": 60.0,
    "objectives": 75.0,
    "pretend": 65.0,
    "labelers": 80.0,
    "samplers": 75.0,
    "config": 38.0,
    "store": 30.0,
    "models": 53.0,
    "endpoints": 45.0,
    "upstream": 15.0,
    "hardware": 38.0,
    "formats": 80.0,  # files whose errors are followed
    "evaluation": 100.0,  # models of 0.1M that plain loops train
    "preflight": 21.0,
    "pages": 20.0,
    "bench": 11.0,
    "curation": 10.0,
    "tracking": 25.0,
    "tasks": 6.0,
    "pairing": 4.0,
}
OTHERS = 20.0  # the budget of a room that is not in the table
CPU = "cpu_seconds"


def spent() -> float:
    """Return the CPU-seconds of this process so far, and of its finished children."""
    usages = [
        resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def room(nodeid: str) -> str:
    """Return the room of a test: `cli` for `tests/cli/test_sweep.py::test_…`."""
    folders = nodeid.split("::")[0].split("/")[1:-1]
    return folders[0] if folders else HOUSE


class Meter:
    """The plugin that measures time in processes that run tests. The reports of teardowns carry its figures."""

    def __init__(self) -> None:
        self.began = 0.0
        self.fixtures = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.began = spent()
        self.fixtures = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        began = spent()
        within = self.fixtures
        try:
            return (yield)
        finally:
            if fixturedef.scope == "session":
                self.fixtures = (
                    within + spent() - began
                )  # it contains the fixtures that this one uses

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            seconds = {FIXTURES: self.fixtures, "test": spent() - self.began - self.fixtures}
            item.user_properties.append((CPU, seconds))


class Ledger:
    """The plugin of the main process, which adds up all figures and compares them with the budgets."""

    def __init__(self, factor: float | None) -> None:
        self.factor = factor or 1.0
        self.is_enforced = factor is not None
        self.tests = Counter[str]()
        self.used = Counter[str]()
        self.costs = Counter[str]()  # by test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = dict(report.user_properties).get(CPU)
        if report.when == "teardown" and seconds:
            place = SLOW if "slow" in report.keywords else room(report.nodeid)
            self.tests[place] += 1
            self.used[place] += seconds["test"]
            self.used[FIXTURES] += seconds[FIXTURES]
            self.costs[report.nodeid] = seconds["test"]

    def over(self) -> list[str]:
        names = [name for name in self.used if name != SLOW]
        return [name for name in names if self.used[name] > self.budget(name)]

    def budget(self, name: str) -> float:
        return BUDGETS.get(name, OTHERS) * self.factor

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # workers of pytest-xdist are children of this process
        self.used[START] = spent() - self.used.total()
        if self.is_enforced and self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        line = "{:<18}{:>6}{:>8.1f}{:>8.0f}".format
        over = self.over()
        terminalreporter.write_sep("=", "CPU-seconds: room, tests, used, budget")
        for name, used in self.used.most_common():
            text = line(name, self.tests[name], used, self.budget(name))
            terminalreporter.write_line(text, red=name in over)
        terminalreporter.write_line(line("all", self.tests.total(), self.used.total(), 0))
        for nodeid, used in self.costs.most_common():
            if room(nodeid) in over:
                terminalreporter.write_line(f"{used:8.1f} {nodeid}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget-factor",
        type=float,
        help="fail if a room takes more than this factor times its budget",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Meter())
    if not hasattr(config, "workerinput"):  # not a worker of pytest-xdist
        config.pluginmanager.register(Ledger(config.option.budget_factor))
