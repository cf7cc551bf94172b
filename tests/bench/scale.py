"""The memory of stages by the number of candidates: `python -m tests.bench.scale FOLDER COUNT PART` prints bytes.

Made-up nodes of COUNT candidates, eight a prompt, with one of two short texts each, go through the stages `label`
(checks), `pairs` and `select`.
"""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from stages.store import judged_pool
from stages.store.records import Candidate, Check, Example, save
from tests.helpers import ROOT, settings
from tests.rows import work

PER_PROMPT = 8
TOKEN_IDS = [0, 1, 2, 3]
INPUTS = {
    "label": {"pool": "sample"},
    "pairs": {"judged": "label"},
    "select": {"judged": "label", "data": "data"},
}


def make_prompt(i: int) -> Example:
    messages = [{"role": "user", "content": f"Name number {i}."}]
    checks = [Check("contains", {"text": "one"})]
    return Example(f"{i:016x}", messages, None, "made up", "made up", "preference", checks=checks)


def make_candidates(i: int) -> list[Candidate]:
    """Return a prompt's candidates. The checks accept every second one."""
    candidates = list[Candidate]()
    for j in range(PER_PROMPT):
        name = f"{i * PER_PROMPT + j:016x}"
        text = "It is two." if j % 2 else "It is one."
        drawn = ("policy", "hf", 1.0, 0, text, TOKEN_IDS, "stop", -1.5, 4)
        candidates.append(Candidate(f"{i:016x}", name, *drawn))
    return candidates


def make_nodes(folder: Path, count: int) -> None:
    """Write the inputs of the stages: the node `sample`, and `data` without examples."""
    for name in ("sample", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    prompts = range(count // PER_PROMPT)
    save(folder / "data" / "examples.parquet", [], Example)
    save(folder / "sample" / "prompts.parquet", map(make_prompt, prompts), Example)
    candidates = (candidate for i in prompts for candidate in make_candidates(i))
    save(folder / "sample" / "candidates.parquet", candidates, Candidate)


def run_chain(folder: Path, count: int, part: int) -> None:
    """Run all stages in this process. `part` records are sorted together, as if there were many more."""
    judged_pool.ROWS_PER_PART = part
    make_nodes(folder, count)
    cfg = settings("recipe=tiny")
    for step, names in INPUTS.items():
        inputs = {role: folder / name for role, name in names.items()}
        import_module(f"stages.{step}").run(getattr(cfg, step), inputs, work(folder / step))


def peak() -> int:
    """Return this process's largest resident memory in bytes. (`ru_maxrss` would count the parent's, too.)"""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) << 10


def memory_of_chain(folder: Path, count: int, part: int) -> int:
    """Return the largest resident memory of a process of its own that runs the chain, in bytes."""
    command = [sys.executable, "-m", "tests.bench.scale", str(folder), str(count), str(part)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    run_chain(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(f"{peak()}\n")
