"""Budgets for the processor time of tests, per folder of tests/ (a room), with a table after every run.

CPU-seconds are the user's and the system's time of the test process and of its finished children, so other work on the
machine adds little. Session fixtures have their own line, since any room may be the first to use one. So has the start
of pytest with the imports. Tests marked slow have no budget.

A busy core may need twice the CPU-seconds of an idle one, and machines differ as much. So between tests the run also
times a fixed piece of work, `yardstick`, and budgets count seconds of a machine that needs REFERENCE for it.

With `--budget-factor=F`, as in `.ci/run`, the run fails if a room takes more than F times its budget. Before raising a
budget, make the room cheaper: a process that loads TRL takes five seconds, a training half a second, and the shared
store `built` nothing. A budget is about 1.5 times the measured time.
"""

import resource
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

START, FIXTURES, HOUSE, SLOW = "start", "session fixtures", "tests", "slow"

BUDGETS = {
    START: 35.0,  # per process, for the imports of pytest, torch, TRL and the tests
    FIXTURES: 80.0,  # two chains, each built by a command
    HOUSE: 50.0,  # files directly in tests/
    "stages": 300.0,
    "cli": 300.0,  # compositions, a third slower since nothing of Hydra or yaml is patched
    "pipeline": 200.0,
    "commands": 180.0,
    "launch": 70.0,
    "training": 70.0,
    "docs": 60.0,
    "objectives": 75.0,
    "pretend": 65.0,
    "labelers": 105.0,
    "samplers": 75.0,
    "config": 38.0,
    "store": 60.0,
    "models": 53.0,
    "endpoints": 45.0,
    "upstream": 15.0,
    "hardware": 38.0,
    "formats": 35.0,
    "evaluation": 32.0,
    "preflight": 21.0,
    "pages": 20.0,
    "bench": 11.0,
    "curation": 10.0,
    "tracking": 25.0,
    "tasks": 6.0,
    "pairing": 4.0,
}
OTHERS = 20.0  # the budget of a room that is not in the table

# The tests of `.ci/run`, in three processes, should end within ten minutes on a machine whose yardstick takes 0.04 s.
WHOLE = 2200.0

CPU = "cpu_seconds"
REFERENCE = 0.1  # CPU-seconds of the yardstick on the machine of these budgets
EVERY = 100  # tests between two uses of the yardstick


def yardstick() -> float:
    """Return the CPU-seconds that this machine takes now for a fixed piece of work on strings and dictionaries."""
    began, counts = time.process_time(), dict[str, int]()
    for i in range(300_000):
        word = str(i % 9973)
        counts[word] = counts.get(word, 0) + len(word)
    return time.process_time() - began


def spent(children: bool = True) -> float:
    """Return the CPU-seconds of this process so far, and of its finished children."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)[: 1 + children]
    return sum(sum(resource.getrusage(each)[:2]) for each in whose)


def room(nodeid: str) -> str:
    """Return the room of a test: `cli` for `tests/cli/test_sweep.py::test_…`."""
    folders = nodeid.split("::")[0].split("/")[1:-1]
    return folders[0] if folders else HOUSE


class Meter:
    """The plugin that measures time in processes that run tests. The reports of teardowns carry its figures."""

    def __init__(self) -> None:
        self.began = self.fixtures = self.counted = 0.0
        self.tests, self.yards = 0, list[float]()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        if self.tests % EVERY == 0:
            self.yards.append(yardstick())
        self.tests += 1
        self.began, self.fixtures = spent(), 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        if fixturedef.scope != "session":
            return (yield)
        began, within = spent(), self.fixtures
        try:
            return (yield)
        finally:
            self.fixtures = within + spent() - began  # it contains the fixtures that this one uses

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        try:
            return (yield)
        finally:
            took = spent() - self.began
            self.counted += took
            item.user_properties.append(
                (CPU, [round(took - self.fixtures, 3), round(self.fixtures, 3)])
            )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[CPU] = spent() - self.counted, self.yards


class Ledger:
    """The plugin of the main process, which adds up all figures and compares them with the budgets."""

    def __init__(self, factor: float | None, meter: Meter) -> None:
        self.enforced, self.factor, self.meter, self.processes = (
            factor is not None,
            factor or 1.0,
            meter,
            1,
        )
        self.tests, self.used = Counter[str](), Counter[str]()
        self.costs: dict[str, dict[str, float]] = {}  # by room and test

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == CPU:
                place = SLOW if "slow" in report.keywords else room(report.nodeid)
                self.tests[place] += 1
                self.used[place] += value[0]
                self.used[FIXTURES] += value[1]
                self.costs.setdefault(place, {})[report.nodeid] = value[0]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        started, yards = getattr(node, "workeroutput", {}).get(CPU, (0.0, []))
        self.used[START] += started
        self.meter.yards += yards
        self.processes += 1

    def over(self) -> list[str]:
        return [name for name, used in self.used.items() if used > self.budget(name)]

    def slowness(self) -> float:
        """Return how many times as long this machine took during the run as that of the budgets."""
        yards = self.meter.yards
        return sum(yards) / len(yards) / REFERENCE if yards else 1.0

    def budget(self, name: str) -> float:
        if name == SLOW:
            return float("inf")
        return (
            BUDGETS.get(name, OTHERS)
            * self.factor
            * self.slowness()
            * (self.processes if name == START else 1)
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # The workers are children of this process, and have reported their time themselves.
        dealt = session.config.pluginmanager.hasplugin("dsession")
        self.used[START] += spent(children=not dealt) - self.meter.counted
        if self.enforced and self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        line = "{:<18}{:>6}{:>8}{:>8}".format
        terminalreporter.write_sep("=", "CPU-seconds")
        terminalreporter.write_line(line("room", "tests", "used", "budget"))
        for name, used in sorted(self.used.items(), key=lambda each: -each[1]):
            budget = "" if name == SLOW else f"{self.budget(name):.3g}"
            report_line = line(name, self.tests[name] or "", f"{used:.1f}", budget)
            terminalreporter.write_line(report_line, red=used > self.budget(name))
        terminalreporter.write_line(line("all", self.tests.total(), f"{self.used.total():.1f}", ""))
        terminalreporter.write_line(
            f"This machine took {self.slowness():.2f} times as long as that of the budgets."
        )
        for name in self.over():
            report_line = f"{name} is over its budget of {self.budget(name):.3g} CPU-seconds: see tests/budgets.py"
            terminalreporter.write_line(report_line, red=True)
            costs = self.costs.get(name, {})
            for nodeid in sorted(costs, key=lambda each: -costs[each])[:5]:
                terminalreporter.write_line(f"{costs[nodeid]:8.1f} {nodeid}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget-factor",
        type=float,
        help="fail if a room takes more than this factor times its budget",
    )


def pytest_configure(config: pytest.Config) -> None:
    meter = Meter()
    config.pluginmanager.register(meter)
    if not hasattr(config, "workerinput"):  # not a worker of pytest-xdist
        config.pluginmanager.register(Ledger(config.option.budget_factor, meter))
