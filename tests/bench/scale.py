"""Measure how stages grow with the number of candidates: `python -m tests.bench.scale [COUNT …] [KEY=VALUE …]`.

Made-up nodes of COUNT candidates (100_000), eight a prompt, with one of two short texts and `tokens` ids each (4), go
through the stages `label` (checks), `pairs` and `select`.
Every step runs in a fresh process. For each, the seconds and CPU-seconds per million candidates, the largest resident
memory and the bytes of its files per candidate.
"""

import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from stages.store import judged_pool
from stages.store.records import Candidate, Check, Example, save
from tests.budgets import spent
from tests.helpers import ROOT, settings
from tests.rows import work

PER_PROMPT = 8
INPUTS = {
    "label": {"pool": "sample"},
    "pairs": {"judged": "label"},
    "select": {"judged": "label", "data": "data"},
}


class Cost(NamedTuple):
    """The cost of a step: seconds, CPU-seconds, the largest resident memory and the files' size in bytes."""

    wall: float
    processor: float
    memory: int
    written: int


def make_prompt(i: int) -> Example:
    messages = [{"role": "user", "content": f"Name number {i}."}]
    checks = [Check("contains", {"text": "one"})]
    return Example(f"{i:016x}", messages, None, "made up", "made up", "preference", checks=checks)


def make_candidates(i: int, token_ids: list[int]) -> list[Candidate]:
    """Return a prompt's candidates. The checks accept every second one."""
    candidates = list[Candidate]()
    for j in range(PER_PROMPT):
        name = f"{i * PER_PROMPT + j:016x}"
        text = "It is two." if j % 2 else "It is one."
        drawn = ("policy", "hf", 1.0, 0, text, token_ids, "stop", -1.5, len(token_ids))
        candidates.append(Candidate(f"{i:016x}", name, *drawn))
    return candidates


def make_nodes(folder: Path, count: int, tokens: int) -> None:
    """Write the inputs of the stages: the node `sample`, and `data` without examples."""
    for name in ("sample", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    prompts = range(count // PER_PROMPT)
    token_ids = [*range(tokens)]
    save(folder / "data" / "examples.parquet", [], Example)
    save(folder / "sample" / "prompts.parquet", map(make_prompt, prompts), Example)
    candidates = (candidate for i in prompts for candidate in make_candidates(i, token_ids))
    save(folder / "sample" / "candidates.parquet", candidates, Candidate)


def run_step(step: str, folder: Path, count: int, tokens: int = 4, part: int = 0) -> Cost:
    """Run a step in this process, which must be a fresh one: its largest memory counts from the start. `chain` is all
    of them. `part` records are sorted together, as if there were many more (0: as many as always)."""
    judged_pool.ROWS_PER_PART = part or judged_pool.ROWS_PER_PART
    started = time.perf_counter()
    processor = spent()
    out = folder / step
    if step == "chain":
        for each in ("sample", *INPUTS):
            run_step(each, folder, count, tokens, part)
    elif step == "sample":
        make_nodes(folder, count, tokens)
    else:
        module = import_module(f"stages.{step}")
        block = getattr(settings("recipe=tiny"), step)
        inputs = {role: folder / name for role, name in INPUTS[step].items()}
        started = time.perf_counter()
        processor = spent()
        module.run(block, inputs, work(out))
    took = (time.perf_counter() - started, spent() - processor)
    return Cost(*took, peak(), sum(path.stat().st_size for path in out.glob("*") if path.is_file()))


def peak() -> int:
    """Return this process's largest resident memory in bytes. (`ru_maxrss` would count the parent's, too.)"""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) << 10


def in_fresh_process(step: str, folder: Path, count: int, **options: int) -> Cost:
    """Return the cost of a step that runs in a process of its own."""
    arguments = json.dumps({"step": step, "folder": str(folder), "count": count, **options})
    command = [sys.executable, "-m", "tests.bench.scale", arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{step} failed: {done.stderr[-2000:]}")
    return Cost(*json.loads(done.stdout.splitlines()[-1]))


def main(counts: Sequence[int], **options: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            for step in ("sample", *INPUTS):
                cost = in_fresh_process(step, Path(temporary, str(count)), count, **options)
                per_million = (cost.wall * 1e6 / count, cost.processor * 1e6 / count)
                logging.info("%d %s: %.1f s and %.1f CPU-s a million", count, step, *per_million)
                sizes = (cost.memory >> 20, cost.written / count)
                logging.info("    %d MiB at most, %.1f bytes a candidate", *sizes)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        arguments: dict[str, Any] = json.loads(sys.argv[1])
        arguments["folder"] = Path(arguments["folder"])
        sys.stdout.write(json.dumps(run_step(**arguments)))
    else:
        named = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
        numbers = [int(word) for word in sys.argv[1:] if "=" not in word]
        main(numbers or [100_000], **{key: int(value) for key, value in named.items()})
