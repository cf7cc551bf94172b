"""Measure the start-up time of commands: `python -m tests.bench.start [ROUNDS] [JSON]`.

`--help`, `stage=plan` and a chain that is already built (`recipe=tiny`), against `python -c "import hydra"` and
against Hydra composing our configuration for a task that does nothing. Rounds of all of them alternate, since machines
are noisy. Prints medians with the range, and how much is ours beyond Hydra's part; writes
all rounds as JSON.
"""

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.hardware import process
from tests.helpers import ROOT, TINY

COMPOSING = """
import hydra
from stages.cli import compose, recipes
from stages.config.installation import ROOT
recipes.register([])
hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(lambda cfg: None)()
"""
HYDRA, COMPOSED = "import hydra", "Hydra composing"

Rounds = dict[str, list[dict[str, float]]]


def main(rounds: int, results: Path) -> None:
    with tempfile.TemporaryDirectory() as outputs:
        chain = (*TINY, f"outputs={outputs}")
        timed("run.py", *chain)
        commands = {
            HYDRA: ("-c", "import hydra"),
            COMPOSED: ("-c", COMPOSING, *chain),
            "--help": ("run.py", "--help"),
            "stage=plan": ("run.py", *chain, "stage=plan"),
            "a built chain": ("run.py", *chain),
        }
        seconds_by_command: Rounds = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds_by_command[name].append(timed(*command))
    show(seconds_by_command)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(seconds_by_command, indent=1))
    logging.info("all rounds: %s", results)


def timed(*arguments: str) -> dict[str, float]:
    """Seconds on the clock and of the processor, of one command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{' '.join(arguments)} failed")
    return {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime}


def show(seconds_by_command: Rounds) -> None:
    """Print a row per command: seconds, and processor time compared with importing and composing Hydra alone."""
    logging.info(
        "%-16s %-24s %-10s %-9s %s", "", "seconds", "processor", "× import", "beyond composing"
    )
    processor = {}
    for name, rounds in seconds_by_command.items():
        processor[name] = statistics.median(r["processor"] for r in rounds)
    for name, rounds in seconds_by_command.items():
        seconds = [r["seconds"] for r in rounds]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        beyond = (
            "" if name in (HYDRA, COMPOSED) else f"{processor[name] - processor[COMPOSED]:+.2f}"
        )
        ratio = processor[name] / processor[HYDRA]
        logging.info("%-16s %-24s %-10.2f %-9.1f %s", name, spread, processor[name], ratio, beyond)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    words = sys.argv[1:]
    count = int(words.pop(0)) if words and words[0].isdigit() else 7
    main(count, Path(words[0]) if words else ROOT / "outputs" / "bench" / "start.json")
