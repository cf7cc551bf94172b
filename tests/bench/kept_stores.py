"""Prove that a refactoring changes nothing: `python -m tests.bench.kept_stores build|check|fresh FOLDER`.

`build` runs the commands below with one checkout into FOLDER/store; a FOLDER that failed is removed by hand. `check`
runs the commands again on a copy of that store: each must end well, link the same nodes in `latest`, and neither add
nor change a file of a node. The commands that build nothing follow. `fresh` runs the commands into an empty store, and
compares every file of every node with FOLDER's.

A last `--checkout DIR` names the checkout whose run.py is started; without it, this one. The commands read files of
FOLDER/inputs alone, so that the paths in fingerprints are the same in every build. Prints each command's seconds, then
what differs, and exits with 1 where anything does.
"""

import hashlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.hardware import process
from tests.bench.judge_kills import by_letters
from tests.endpoints.servers import Model, Request, running
from tests.helpers import ROOT
from tests.labelers.asking import ADDRESS, Person
from tests.labelers.judging import judging

ALL = ("recipe=tiny", "tracker=none", "precision=fp32")
# No server has this address. Every call goes to the proxy in the environment, since its port enters no fingerprint.
ENDPOINT = "{base_url: 'http://models.example/v1', model: NAME, runtime: {backoff: 0.02}}"
NOBODY = "http://127.0.0.1:9"  # the proxy of a command that must not ask anybody
INSTRUMENTS = ("plan", "compare", "report", "gc", "doctor", "chat")

# Two builds differ in these alone: pages with times, and in other files these keys of JSON lines.
TIMED_STAGES = ("report",)
TIMED_KEYS = {"curves.jsonl": ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")}
TIMED_KEYS |= {"answers.jsonl": ("at",)}
# A manifest also holds paths, memory and the commit: these keys of it are compared, and the names of all keys.
RESULTS = ("version", "roots", "settings", "metrics")

Contents = dict[str, dict[str, str]]


def commands(inputs: Path) -> dict[str, tuple[str, ...]]:
    """Return the overrides of every command by its name, in an order in which each finds the files that it reads."""
    judge, preferences = ENDPOINT.replace("NAME", "judge"), inputs / "preferences.jsonl"
    endpoints = f"label.endpoints=[{judge}]"
    members = "label.members=[{labeler: verifier}, {labeler: judge, weight: 2}]"
    writer, own = ENDPOINT.replace("NAME", "writer"), inputs / "candidates.jsonl"
    pool = f"sample.pool=[{{n: 2}}, {{model: base, n: 1}}, {{endpoint: {writer}, n: 1}}, {{file: {own}}}]"
    source = f"data.sources=[{{path: {inputs / 'demonstrations.jsonl'}, splits: {{sft: 0.9, validation: 0.1}}}}]"
    return {
        "chain": ("stage=report",),
        "control": ("stage=report", "control=true"),
        "seeds": ("stage=report", "seeds=[1]"),
        "rounds": ("stage=eval", "rounds=2"),
        "pool": ("stage=dpo", pool),
        "unpaired": ("stage=unpaired",),
        "source": ("stage=sft", source),
        "trl": (
            "stage=dpo",
            "sft.packing=true",
            "sft.batch_size=1",
            "dpo.forward=padded",
            "dpo.loss_type=[ipo]",
        ),
        "lora": ("stage=eval", "sft.adapter=lora", "dpo.adapter=lora"),
        "continued": ("stage=dpo", "sft.adapter=lora", "dpo.adapter=continued"),
        "reward": ("stage=reward",),
        "reward_model": ("stage=pairs", "label=reward_model", f"reward.source.path={preferences}"),
        "judge": ("stage=dpo", "label=judge", endpoints, "pairs=all"),
        "pointwise": ("stage=pairs", "label=judge", endpoints, "label.kind=pointwise"),
        "ensemble": (
            "stage=pairs",
            "label=ensemble",
            endpoints.replace("label.", "label.judge."),
            members,
        ),
        "human": (
            "stage=pairs",
            "label=human",
            "label.prompts=12",
            "label.runtime.port=0",
        ),
        "dataset": ("stage=report", "label=dataset", f"label.path={preferences}", "pairs=all"),
        "open": ("recipe=instructions", "align=dpo", "scale=toy", "stage=report"),
    }


def write_inputs(inputs: Path) -> None:
    """Write the preferences and demonstrations that commands read."""
    inputs.mkdir(parents=True)
    rows = [
        (f"Is {n} odd or even? One word.", ("even", "odd")[n % 2], ("odd", "even")[n % 2])
        for n in range(64)
    ]
    write_rows(
        inputs / "preferences.jsonl",
        [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows],
    )
    write_rows(
        inputs / "demonstrations.jsonl", [{"prompt": p, "completion": c} for p, c, _ in rows]
    )


def write_candidates(inputs: Path, store: Path) -> None:
    """Write two completions for prompts of the chain: the last source of the pool."""
    prompts = pq.read_table(store / "latest" / "sample" / "prompts.parquet").to_pylist()[:30]
    completions = [[str(prompt["reference"]), "my own"] for prompt in prompts]
    rows = [
        {"messages": p["messages"], "completions": two}
        for p, two in zip(prompts, completions, strict=True)
    ]
    write_rows(inputs / "candidates.jsonl", rows)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Runner:
    """Starts the commands of a checkout on a store; `proxy` answers what they ask of models."""

    def __init__(self, checkout: Path, store: Path, proxy: str):
        self.checkout, self.store = checkout.resolve(), store
        self.environment = os.environ | {
            "PYTHONPATH": str(self.checkout),
            "http_proxy": proxy,
            "no_proxy": "",
        }
        self.environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def run(self, name: str, overrides: tuple[str, ...], typed: str = "") -> str:
        """Run a command, answer what it asks people, and log its seconds. Return its output if it fails."""
        started, before = time.time(), cpu_seconds()
        line = [sys.executable, "run.py", *ALL, f"outputs={self.store}", *overrides]
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        output = list[str]()
        with subprocess.Popen(
            line, cwd=self.checkout, env=self.environment, text=True, **pipes
        ) as command:
            command.stdin.write(typed)
            command.stdin.close()
            for message in command.stdout:
                output.append(message.rstrip())
                if address := ADDRESS.search(message):
                    judge_all(Person(int(address[2]), "ann"))
        wall, cpu = time.time() - started, cpu_seconds() - before
        failure = f"exit status {command.returncode}" if command.returncode else ""
        logging.info("%-13s %5.1f s, %5.1f CPU-seconds %s", name, wall, cpu, failure)
        return "\n".join([failure, *output[-20:]]) if failure else ""

    def use(self, name: str, overrides: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        """Run a command. Return its output if it fails, and the nodes that `latest` then links to, by stage."""
        shutil.rmtree(self.store / "latest", ignore_errors=True)
        output = self.run(name, overrides)
        return output, {link.name: link.readlink().name for link in self.store.glob("latest/*")}


def judge_all(person: Person) -> None:
    """Answer every question by the texts alone, whoever stands on the left."""
    while question := person.next()["question"]:
        first, second = (answer["text"] for answer in question["answers"])
        person.says(question["id"], "tie" if first == second else "ab"[first < second])


def answer(request: Request) -> str:
    """Return what the models behind the proxy answer: the writer's words, or a judge's verdict or score."""
    if request["model"] == "writer":
        return f"words {request['seed'] % 5}"
    pointwise = "<<ANSWER" in request["messages"][-1]["content"]
    reply = (
        judging(lambda texts: len(texts["ANSWER"]) % 10 + 1, "score")
        if pointwise
        else judging(by_letters)
    )
    return reply(request)


def cpu_seconds() -> float:
    """Return what the commands that have ended used."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def contents(store: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> Contents:
    """Return the SHA-256 of what `read` returns of every file, for every published node."""
    folders = sorted(
        file.parent for file in store.glob("*/*/manifest.json") if not file.parent.is_symlink()
    )
    digests: Contents = {}
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        by_name = {
            str(file.relative_to(folder)): hashlib.sha256(read(file)).hexdigest() for file in files
        }
        digests[f"{folder.parent.name}/{folder.name}"] = by_name
    return digests


def without_times(file: Path) -> bytes:
    """Return the part of a node's file that does not depend on when and where the node was built."""
    if file.parts[-3] in TIMED_STAGES:
        return b""
    if file.name == "manifest.json":
        manifest = json.loads(file.read_text())
        manifest["metrics"].pop("summary", None)  # a sentence, which may be worded anew
        manifest["metrics"] = sorted(manifest["metrics"].items())  # their order says nothing
        return json.dumps([sorted(manifest), [manifest[key] for key in RESULTS]]).encode()
    if file.name in TIMED_KEYS:
        rows = map(json.loads, file.read_text().splitlines())
        return json.dumps(
            [{k: row[k] for k in row if k not in TIMED_KEYS[file.name]} for row in rows]
        ).encode()
    return file.read_bytes()


def differences(before: Contents, after: Contents) -> list[str]:
    """Return a line for every node that one store lacks, or whose files differ."""
    lines = [
        f"{node}: {'missing' if node in before else 'new'}" for node in before.keys() ^ after.keys()
    ]
    for node in before.keys() & after.keys():
        names = {name for name, _ in before[node].items() ^ after[node].items()}
        lines += [f"{node}: {', '.join(sorted(names))}"] if names else []
    return sorted(lines)


def build(folder: Path, checkout: Path, store: Path) -> list[str]:
    """Run all commands into a store, and write down the nodes that each one used. Return what went wrong."""
    inputs, wrong, nodes = folder / "inputs", list[str](), {}
    with running(Model(answer)) as models:
        runner = Runner(checkout, store, models.url.removesuffix("/v1"))
        for name, overrides in commands(inputs).items():
            output, nodes[name] = runner.use(name, overrides)
            if output:
                wrong.append(f"{name}: {output}")
            elif name == "chain" and not (inputs / "candidates.jsonl").exists():
                write_candidates(inputs, store)
    (store / "commands.json").write_text(json.dumps(nodes, indent=1))
    return wrong


def check(folder: Path, checkout: Path, store: Path) -> list[str]:
    """Run all commands again on a copy of FOLDER's store, and those that build nothing. Return what went wrong."""
    shutil.copytree(
        folder / "store", store, symlinks=True, ignore=shutil.ignore_patterns("locks", "runs")
    )
    before, nodes = contents(store), json.loads((store / "commands.json").read_text())
    runner, wrong = Runner(checkout, store, NOBODY), list[str]()
    for name, overrides in commands(folder / "inputs").items():
        output, links = runner.use(name, overrides)
        wrong += [f"{name}: {output}"] if output else []
        changed = sorted(links.items() ^ nodes.get(name, {}).items())
        wrong += [f"{name}: latest links to other nodes: {changed}"] if changed else []
    for stage in INSTRUMENTS:
        output = runner.run(
            stage, (f"stage={stage}",), "Name a colour.\n" if stage == "chat" else ""
        )
        wrong += [f"stage={stage}: {output}"] if output else []
    partial = [f"{path.relative_to(store)}: begun" for path in store.glob("*/*.partial")]
    return wrong + differences(before, contents(store)) + partial


def fresh(folder: Path, checkout: Path, store: Path) -> list[str]:
    """Build into an empty store. Return the nodes that are not those of FOLDER's store, and what went wrong."""
    wrong = build(folder, checkout, store)
    before, after = contents(folder / "store", without_times), contents(store, without_times)
    logging.info("%d nodes, %d files compared", len(before), sum(map(len, before.values())))
    return wrong + differences(before, after)


def main(action: str, folder: Path, checkout: Path) -> int:
    """Return the exit status."""
    if action == "build":
        write_inputs(folder / "inputs")
        wrong = build(folder, checkout, folder / "store")
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
            wrong = {"check": check, "fresh": fresh}[action](folder, checkout, Path(empty, "store"))
    logging.info("%s\n%.0f CPU-seconds", "\n".join(wrong) or "nothing differs", cpu_seconds())
    return int(bool(wrong))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    words = sys.argv[1:] if "--checkout" in sys.argv else [*sys.argv[1:], "--checkout", str(ROOT)]
    match words:
        case ["build" | "check" | "fresh" as action, folder, "--checkout", checkout]:
            sys.exit(main(action, Path(folder).resolve(), Path(checkout)))
    sys.exit(__doc__)
