"""A sweep against as many separate chains: `python -m tests.bench.sweep [LAUNCHER,LAUNCHER …] [KEY=VALUE,VALUE …]`.

Every way starts from an empty store and makes the same targets; rounds of all ways alternate, since machines are
noisy. By default: every launcher, on two SFT rates × two betas of `recipe=tiny`. Three by three on the demo's model:
`python -m tests.bench.sweep basic stage=dpo sft.learning_rate=1e-4,2e-4,3e-4 dpo.beta=0.05,0.1,0.5 seed=1`.
"""

import logging
import statistics
import subprocess
import sys
import tempfile
import time

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.hardware import process
from tests.cli.test_sweep import LAUNCHERS
from tests.helpers import ROOT

TINY = ["recipe=tiny", "stage=dpo", "sft.learning_rate=5e-3,2e-3", "dpo.beta=0.1,0.5"]
ROUNDS = 2


def main(launchers: list[str], grid: list[str]) -> None:
    [jobs] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(grid), None)
    seconds: dict[str, list[float]] = {name: [] for name in ("separate chains", *launchers)}
    for _ in range(ROUNDS):
        seconds["separate chains"].append(sum(timed(job) for job in jobs))
        for name in launchers:
            seconds[name].append(timed([*grid, *LAUNCHERS[name], "-m"]))
    separate_seconds = statistics.median(seconds["separate chains"])
    for name, rounds in seconds.items():
        each = ", ".join(f"{s:.1f}" for s in rounds)
        share = statistics.median(rounds) / separate_seconds
        logging.info(
            "%-16s %8.1f s  %.2f of separate chains  (%s)",
            name,
            statistics.median(rounds),
            share,
            each,
        )


def timed(overrides: list[str]) -> float:
    """Seconds of one command on an empty store."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as outputs:
        command = [sys.executable, "run.py", "tracker=none", f"outputs={outputs}", *overrides]
        started = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    words = sys.argv[1:]
    chosen = words.pop(0).split(",") if words and "=" not in words[0] else list(LAUNCHERS)
    main(chosen, words or TINY)
