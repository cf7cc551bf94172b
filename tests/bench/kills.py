"""Commands are killed at random moments and typed again: `python -m tests.bench.kills [kills=60] [seed=0]`.

The tiny chain, the same trained by two processes (`launch=ddp`), a sweep (`-m`), an export and `stage=gc` with
gc.remove=true. Every case begins on a hard-linked copy of a store that nobody disturbed, without some of its nodes,
and SIGKILL ends the command's whole process group, of some cases twice, or its parent alone where it has children.
Then the same command must run to its end. What it has published must be what the undisturbed store holds: weights to
the bit, by two processes within 1e-5, log-probs that a resumed batch rounds anew within 1e-4. No lock may be held, and
no partial folder or draft be left. Prints a row for each case and exits with 1 where one ended otherwise.
"""

import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.numpy import load_file

from stages.hardware import process
from stages.store.node import Node
from stages.store.store import Store
from tests.helpers import ROOT, TINY, nodes
from tests.pipeline.test_resume import CADENCE

BETAS = ("0.1", "0.5", "0.9")  # the first is the recipe's
SWEEP = ("stage=dpo", f"dpo.beta={','.join(BETAS)}", "-m")
EXPORT, GC = ("stage=export", "export.dtype=f32"), ("stage=gc", "gc.remove=true")
TAILS = ("sft", "sample", "label", "pairs", "reference", "dpo", "answer_policy", "eval", "report")
TURNS = ("chain", "ddp", "sweep", "chain", "export", "ddp", "chain", "sweep", "chain", "gc")
# log-probs of a resumed batch, and figures that follow from weights by two processes
ROUNDED = 1e-4
FAR = {"ddp": 1e-5}  # weights; else to the bit
LEFT = ("*/*.partial", "*/*.replaced", "**/*.draft*", "**/.*.draft")


@dataclass
class Case:
    """A command on a store of its own, what its end is compared with, and how long it may take undisturbed."""

    kind: str
    arguments: tuple[str, ...]
    root: Path
    rebuilt: dict[str, Node] = field(default_factory=dict)
    seconds: float = 0.0


def main(kills: int, seed: int) -> int:
    """Returns the exit status."""
    draw, done, wrong = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        whole, survivor = Path(folder, "undisturbed"), Path(folder, "kept")
        finish((*TINY, *CADENCE, f"outputs={whole}", *SWEEP))
        started = time.time()
        finish((*TINY, *CADENCE, f"outputs={whole}"))
        manifests = [
            manifest for _, manifest in Store(whole).manifests() if manifest["started"] > started
        ]
        start = time.time() - started - sum(manifest["wall_seconds"] for manifest in manifests)
        finish((*TINY, f"outputs={whole}", *EXPORT))
        finish((*TINY, f"outputs={copy(whole, survivor)}", *GC))
        logging.info("%-6s %-34s %-26s %s", "kills", "what", "after seconds", "typed again")
        turn, pace = 0, 1.0  # of this machine, which others may use too
        while done < kills:
            case = begin(TURNS[turn % len(TURNS)], whole, Path(folder, str(turn)), start, draw)
            moments = []
            for _ in range(1 + (draw.random() < 1 / 3)):
                moments.append(disturb(case, draw, pace))
                pace *= 1.1 if moments[-1] else 0.6
            difference = check(
                case, whole, survivor, finish((*TINY, *CADENCE, *case.arguments), check=False)
            )
            killed = sum(moment is not None for moment in moments)
            done, wrong, turn = done + killed, wrong + bool(difference), turn + 1
            moments_message = ", ".join("ended before" if m is None else m for m in moments)
            what = " ".join([case.kind, *list(case.rebuilt)[:1]])
            logging.info(
                "%-6d %-34s %-26s %s", done, what, moments_message, difference or "as undisturbed"
            )
            shutil.rmtree(case.root)
    logging.info("%d kills in %d cases: %d ended otherwise than undisturbed", done, turn, wrong)
    return int(wrong > 0)


def finish(arguments: tuple[str, ...], check: bool = True) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "run.py", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=check)


def copy(whole: Path, root: Path) -> Path:
    """The store by hard links; no lock is shared, since locks belong to files."""
    ignored = shutil.ignore_patterns("locks", "runs", "multirun")
    return Path(shutil.copytree(whole, root, symlinks=True, ignore=ignored, copy_function=os.link))


def begin(kind: str, whole: Path, root: Path, start: float, draw: random.Random) -> Case:
    """A command, and a copy of the undisturbed store that lacks what it makes."""
    copy(whole, root)
    store, named = Store(root), nodes(root)
    if kind == "chain":
        first = named[draw.choice(TAILS)]
        lost = {name: node for name, node in named.items() if first in node.lineage}
        arguments: tuple[str, ...] = ()
    elif kind == "ddp":
        stage = draw.choice(("sft", "dpo"))
        lost, arguments = {stage: named[stage]}, ("launch=ddp", f"stage={stage}")
    elif kind == "sweep":
        lost = {f"dpo of {beta}": nodes(root, f"dpo.beta={beta}")["dpo"] for beta in BETAS}
        lost |= {"reference": named["reference"]} if draw.random() < 0.5 else {}
        arguments = SWEEP
    else:
        lost, arguments = {}, EXPORT if kind == "export" else GC
        shutil.rmtree(root / "export", ignore_errors=kind == "gc")
    seconds = start * (2 if kind == "ddp" else 1)  # the workers start once the parent has
    for folder in {store.folder(node) for node in lost.values()}:
        seconds += json.loads((folder / "manifest.json").read_text())["wall_seconds"]
        shutil.rmtree(folder)
    return Case(kind, (f"outputs={root}", *arguments), root, lost, seconds)


def disturb(case: Case, draw: random.Random, pace: float) -> str | None:
    """Start the command and kill it at a moment of its time, by `pace`. None where it ended before."""
    moment, alone = (
        draw.uniform(0.1, 1.0) * case.seconds * pace,
        case.kind == "ddp" and draw.random() < 0.5,
    )
    process = launch(case)
    try:
        process.wait(moment)
        return None
    except subprocess.TimeoutExpired:
        kill(process, alone)
    return f"{moment:.1f}{' (parent)' if alone else ''}"


def launch(case: Case) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    line, quiet = [sys.executable, "run.py", *TINY, *CADENCE, *case.arguments], subprocess.DEVNULL
    return subprocess.Popen(line, cwd=ROOT, start_new_session=True, stdout=quiet, stderr=quiet)


def kill(process: subprocess.Popen[bytes], alone: bool = False) -> None:
    """Kill the command's process group, or the parent `alone`."""
    (process.kill if alone else lambda: os.killpg(process.pid, signal.SIGKILL))()
    process.wait()


def check(case: Case, whole: Path, survivor: Path, ran: subprocess.CompletedProcess[str]) -> str:
    """Describe the differences to the undisturbed store; '' if there are none."""
    if ran.returncode:
        return f"exit status {ran.returncode}: {ran.stderr.strip()[-300:]}"
    store = Store(case.root)
    locks = (case.root / "cache" / "locks").glob("*-*")
    wrong = [
        f"{lock.name} is locked" for lock in locks if store.is_locked(*lock.name.split("-", 1))
    ]
    wrong += [
        f"{path.relative_to(case.root)} is left"
        for pattern in LEFT
        for path in case.root.glob(pattern)
    ]
    wrong += [
        f"{path} differs"
        for path in published(case.root) ^ published(survivor if case.kind == "gc" else whole)
    ]
    for name, node in case.rebuilt.items():
        differences = differs(store.folder(node), Store(whole).folder(node), case.kind)
        wrong += [f"{name}: {difference}" for difference in differences]
    for file in (whole / "export").iterdir() if case.kind == "export" else ():
        if file.read_bytes() != (case.root / "export" / file.name).read_bytes():
            wrong.append(f"{file.name} differs")
    return "; ".join(wrong)


def published(root: Path) -> set[str]:
    """Folders of nodes, whole or not."""
    return {
        f"{path.parent.name}/{path.name}"
        for path in root.glob("*/????????????")
        if path.parent.name != "export"
    }


def differs(rebuilt: Path, undisturbed: Path, kind: str) -> list[str]:
    """The files of a node that are not those of the undisturbed one."""
    rebuilt_manifest, undisturbed_manifest = (
        json.loads((folder / "manifest.json").read_text()) for folder in (rebuilt, undisturbed)
    )
    if (rebuilt / "curves.jsonl").exists():
        for line in (rebuilt / "curves.jsonl").read_bytes().removesuffix(b"\n").split(b"\n"):
            json.loads(line, parse_constant=no_json)
    if rebuilt_manifest["digest"] == undisturbed_manifest["digest"]:
        return []
    names = set(rebuilt_manifest["files"]) ^ set(undisturbed_manifest["files"])
    if rebuilt_manifest["stage"] != "report":  # which tells times
        pairs = [
            (name, rebuilt / name, undisturbed / name)
            for name in set(rebuilt_manifest["files"]) - names
        ]
        names |= {name for name, a, b in pairs if not alike(a, b, FAR.get(kind, 0.0))}
    return sorted(names)


def no_json(constant: str) -> None:
    raise ValueError(f"{constant} in curves.jsonl")


def alike(rebuilt: Path, undisturbed: Path, far: float) -> bool:
    """Return True if two files hold the same. `far`: the largest difference of weights."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".parquet": lambda path: pq.read_table(path).to_pylist(),
        ".json": lambda path: json.loads(path.read_bytes()),
    }
    if rebuilt.name == "curves.jsonl" or rebuilt.read_bytes() == undisturbed.read_bytes():
        return True
    if rebuilt.suffix == ".safetensors":
        a, b = load_file(rebuilt), load_file(undisturbed)
        return a.keys() == b.keys() and all(abs(a[name] - b[name]).max() <= far for name in a)
    if rebuilt.suffix in readers:
        return close(readers[rebuilt.suffix](rebuilt), readers[rebuilt.suffix](undisturbed))
    return far > 0 and rebuilt.suffix == ".md"  # a card tells figures in words


def close(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=0, abs_tol=ROUNDED)
    return bool(a == b)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    chosen = {key: int(value) for key, _, value in (word.partition("=") for word in sys.argv[1:])}
    sys.exit(main(chosen.get("kills", 60), chosen.get("seed", 0)))
