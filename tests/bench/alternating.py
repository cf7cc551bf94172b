"""Comparisons whose every measurement has a process of its own: `python -m tests.bench.NAME [KEY=VALUE …]`."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import Any, TypeVar

from tests.helpers import ROOT

MEASURE = "--measure"
Settings = TypeVar("Settings", bound=Any)


def no_measure(cfg: Any) -> dict[str, Any]:
    raise NotImplementedError


def run(
    kind: type[Settings],
    compare: Callable[[Settings], None],
    measure: Callable[..., dict[str, Any]] = no_measure,
) -> None:
    """Compare under the settings that the command line gives; or, in a process that `measured` started, measure."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if sys.argv[1:2] == [MEASURE]:
        settings, *rest = map(json.loads, sys.argv[2:])
        sys.stdout.write(json.dumps(measure(kind(**settings), *rest)) + "\n")
        return
    kinds: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    typed = dict(argument.split("=", 1) for argument in sys.argv[1:])
    cfg = kind(**{name: kinds[name](value) for name, value in typed.items()})
    logging.info("%s", json.dumps(asdict(cfg)))
    compare(cfg)


def measured(cfg: Any, *rest: str) -> dict[str, Any]:
    """Run `measure` with these arguments in another process, and return its result."""
    arguments = [json.dumps(value) for value in (asdict(cfg), *rest)]
    command = [sys.executable, "-m", sys.modules["__main__"].__spec__.name, MEASURE, *arguments]  # type: ignore[union-attr]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def results_by_arm(cfg: Any, arms: Iterable[str], *rest: str) -> dict[str, list[dict[str, Any]]]:
    """Run every arm `cfg.repeats` times, alternating, so that other work on the machine slows all of them."""
    rounds_by_arm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for repeat in range(cfg.repeats):
        for arm, results in rounds_by_arm.items():
            results.append(measured(cfg, arm, *rest))
            logging.info("%d %-10s %s", repeat, arm, json.dumps(results[-1]))
    return rounds_by_arm
