"""Commands with a faulty judge are killed and typed again: `python -m tests.bench.judge_kills [kills=40] [seed=0]`.

A judge on 127.0.0.1, whose verdict is a function of two texts, labels the tiny chain. Nobody disturbs the first run.
In every other run the chain is built again from its labels on. A third of the calls fail (errors, hangs, resets,
broken JSON), answers overtake each other, and SIGKILL ends the command's process group: two times in three after a
random number of calls, else at a random moment after the last call. Then the same command must run to its end. Every
node must hold what the undisturbed run's holds, pairs and weights to the byte; and no request may have two answers.
Prints a row for each case and exits with 1 where one ended otherwise.
"""

import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.hardware import process
from stages.store.store import Store
from tests.bench.kills import Case, check, copy, finish, kill, launch
from tests.endpoints.servers import Model, Proxy, running
from tests.helpers import TINY, nodes
from tests.labelers.judging import judging
from tests.pipeline.test_resume import CADENCE

# of calls that fail; seconds of a hang, and that an answer is late at most
SHARE, HANG, LATE = 1 / 3, 1.0, 0.1
RUNTIME = "{retries: 50, backoff: 0.02, timeout: 0.5}"


def asking(url: str) -> tuple[str, ...]:
    """The command line of the tiny chain with the judge at this address."""
    endpoint = f"{{base_url: '{url}', model: judge, runtime: {RUNTIME}}}"
    return ("label=judge", f"label.endpoints=[{endpoint}]", "label.max_failed=0", "pairs=all")


def by_letters(texts: dict[str, str]) -> str:
    """Return which text is better: the later one in the alphabet; some are ties."""
    a, b = texts["A"], texts["B"]
    return "tie" if (a[:1], len(a) % 4) == (b[:1], len(b) % 4) else "A" if a > b else "B"


def main(kills: int, seed: int) -> int:
    """Return the exit status."""
    draw, done, cases, wrong = random.Random(seed), 0, 0, 0
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running(Model(judging(by_letters), late=LATE)) as model,
        running(Proxy(model, 0.0, HANG)) as proxy,
    ):
        whole, line = Path(folder, "undisturbed"), (*asking(proxy.url), "sample.temperatures=[1.5]")
        finish((*TINY, *CADENCE, f"outputs={whole}", *line))
        calls, proxy.share = len(model.requests), SHARE
        after = sum(seconds for name, seconds in times(whole, line).items() if name != "label")
        logging.info(
            "%d calls undisturbed\n%-6s %-40s %s", calls, "kills", "killed after", "typed again"
        )
        while done < kills:
            case = begin(whole, Path(folder, f"{cases}"), line)
            moments = [
                disturb(case, model, calls, after, draw) for _ in range(1 + (draw.random() < 1 / 3))
            ]
            wrongs = check(
                case, whole, whole, finish((*TINY, *CADENCE, *case.arguments), check=False)
            )
            wrongs = wrongs or twice_answered(case.root, whole)
            killed = [moment for moment in moments if moment]
            done, cases, wrong = done + len(killed), cases + 1, wrong + bool(wrongs)
            logging.info(
                "%-6d %-40s %s",
                done,
                ", ".join(killed) or "ended before",
                wrongs or "as undisturbed",
            )
            shutil.rmtree(case.root)
    logging.info("%d kills in %d cases: %d ended otherwise than undisturbed", done, cases, wrong)
    logging.info("faults: %s", dict(proxy.failed))
    return int(wrong > 0)


def times(root: Path, line: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds that each node from the labels on took."""
    named, store = nodes(root, *line), Store(root)
    after = {name: node for name, node in named.items() if named["label"] in node.lineage}
    manifests = {
        name: json.loads((store.folder(node) / "manifest.json").read_text())
        for name, node in after.items()
    }
    return {name: manifest["wall_seconds"] for name, manifest in manifests.items()}


def begin(whole: Path, root: Path, line: tuple[str, ...]) -> Case:
    """Copy the undisturbed store, but for the labels, what follows from them, and the answers that were kept."""
    copy(whole, root)
    shutil.rmtree(root / "cache" / "calls")
    named = nodes(root, *line)
    lost = {name: node for name, node in named.items() if named["label"] in node.lineage}
    for folder in {Store(root).folder(node) for node in lost.values()}:
        shutil.rmtree(folder)
    return Case("judge", (f"outputs={root}", *line), root, lost)


def disturb(case: Case, model: Model, calls: int, after: float, draw: random.Random) -> str:
    """Start the command and kill it after a number of calls, or some seconds after the last; '' where it ended."""
    before, number, seconds = len(model.requests), draw.randint(1, calls), 0.0
    if draw.random() < 1 / 3 or labelled(case):
        number, seconds = calls, draw.uniform(0, after)
    command = launch(case)
    while len(model.requests) < before + number and command.poll() is None and not labelled(case):
        time.sleep(0.005)
    try:
        command.wait(seconds)
        return ""
    except subprocess.TimeoutExpired:
        kill(command)
    return f"{len(model.requests) - before} calls, {seconds:.1f} s"


def labelled(case: Case) -> bool:
    """Return whether an attempt has published the labels."""
    return Store(case.root).folder(case.rebuilt["label"]).exists()


def twice_answered(root: Path, whole: Path) -> str:
    """Return what is wrong with the answers that a case kept, beside those of the undisturbed run."""
    keys, undisturbed = (
        [json.loads(line)["key"] for line in lines(folder)] for folder in (root, whole)
    )
    if len({*keys}) < len(keys):
        return f"{len(keys) - len({*keys})} requests were answered twice"
    return "" if {*keys} == {*undisturbed} else "other requests were answered"


def lines(root: Path) -> list[bytes]:
    [file] = (root / "cache" / "calls").glob("*.jsonl")
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"}\n")]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    chosen = {key: int(value) for key, _, value in (word.partition("=") for word in sys.argv[1:])}
    sys.exit(main(chosen.get("kills", 40), chosen.get("seed", 0)))
