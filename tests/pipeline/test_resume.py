"""Tests of resumes: real processes are killed (SIGKILL), and the next command finishes with the same result."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.store.sealed_json import SEAL
from stages.store.store import Store
from stages.store.workspace import SCRATCH, read_samples
from tests.helpers import Chain, build, nodes, slow_but

CADENCE = ("sft.runtime.save_steps=10", "dpo.runtime.save_steps=1", "sample.runtime.shard_size=8")
CADENCE += (
    "reference.runtime.shard_size=4",
    "answer.runtime.shard_size=8",
)
OF_REWARD = (*CADENCE, "reward.runtime.save_steps=1")  # which other runs do not have
# the default is 100 steps
MINUTES = "runtime.save_minutes=1e-9"

TRAINED = ("sft", "dpo")
SHARDED = ("reference", "sample", "answer_policy")
AT_ONCE = ("base", "data", "label", "pairs", "eval", "report")


def child(root: Path, target: str, at_publish: bool, cadence: tuple[str, ...], *line: str) -> None:
    """Build the target. With `at_publish`, wait just before the finished folder is published."""
    os.setsid()
    if at_publish:
        publish = Store.publish

        def paused(self: Store, node: object, *rest: object) -> object:
            (self.partial(node) / SCRATCH / "here").touch()
            time.sleep(60)
            return publish(self, node, *rest)

        Store.publish = paused
    build(root, f"stage={target}", *cadence, *line)


def kill_when(
    reached: Callable[[], bool],
    root: Path,
    target: str,
    at_publish: bool,
    *line: str,
    cadence: tuple[str, ...] = CADENCE,
) -> None:
    """Start a build in a new process and kill it when `reached` returns True."""
    process = multiprocessing.get_context("fork").Process(
        target=child, args=(root, target, at_publish, cadence, *line)
    )
    process.start()
    deadline = time.monotonic() + 300
    while not reached():
        assert process.is_alive(), f"{target} was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def rows(folder: Path) -> list[dict]:
    """Return the records in the table of a stage that works in shards."""
    table = next(p for p in folder.glob("*.parquet") if p.name != "prompts.parquet")
    return pq.read_table(table).to_pylist()


def checkpoints(scratch: Path) -> list[int]:
    """Return the steps of the complete checkpoints."""
    return [int(path.parent.name.split("-")[1]) for path in scratch.glob(f"checkpoints/*/{SEAL}")]


def interrupted(chain: Chain, name: str) -> None:
    """Remove a node, kill its build, finish it, and compare it with an uninterrupted build."""
    target = name.split("_")[0]
    node = nodes(chain.root, f"stage={target}")[name]
    store = Store(chain.root)
    folder = store.folder(node)
    partial = store.partial(node)
    before = json.loads((folder / "manifest.json").read_text())
    undisturbed = chain.root / "kept"
    folder.rename(undisturbed)

    def reached() -> bool:
        if name in AT_ONCE:
            return (partial / SCRATCH / "here").exists()
        if name in SHARDED:
            return any((partial / SCRATCH / "shards").glob("*.parquet"))
        return bool(checkpoints(partial / SCRATCH))

    cadence = OF_REWARD if name == "reward" else CADENCE
    kill_when(reached, chain.root, target, at_publish=name in AT_ONCE, cadence=cadence)
    assert store.find(node) is None
    assert not folder.exists()
    build(chain.root, f"stage={target}", *CADENCE)
    after = store.find(node)
    assert after is not None
    [killed, _] = after["attempts"]
    assert after["wall_seconds"] >= killed["ended"] - killed["started"] > 0
    assert not partial.exists()
    if name == "report":  # it tells times
        assert set(after["files"]) == set(before["files"])
    elif name in (
        "sample",
        "answer_policy",
    ):  # tokens to the bit; their log-prob, which nothing reads, to fp32's noise
        for resumed_row, undisturbed_row in zip(rows(folder), rows(undisturbed), strict=True):
            assert resumed_row.pop("logprob") == pytest.approx(
                undisturbed_row.pop("logprob"), abs=1e-4
            )
            assert resumed_row == undisturbed_row
    else:
        assert after["digest"] == before["digest"]
        assert read_samples(folder) == read_samples(undisturbed), "none lost, none twice"


@pytest.mark.parametrize("name", slow_but(TRAINED + SHARDED + AT_ONCE, "dpo", "sample", "label"))
def test_a_killed_stage_is_finished_by_the_next_command(name: str, chain: Chain) -> None:
    interrupted(chain, name)


@pytest.mark.slow
def test_a_killed_reward_model_is_finished_by_the_next_command(chain: Chain) -> None:
    build(chain.root, "stage=reward")
    interrupted(chain, "reward")


@pytest.mark.extended
@pytest.mark.parametrize("name", slow_but([*TRAINED, "reward"], "reward"))
def test_a_training_of_few_steps_is_saved_by_time_and_resumed(name: str, chain: Chain) -> None:
    """Check checkpoints by time: there are fewer steps than `save_steps`, so the clock makes them."""
    if name == "reward":
        build(chain.root, "stage=reward")
    node = nodes(chain.root, f"stage={name}")[name]
    store = Store(chain.root)
    before = store.find(node)
    assert before is not None
    store.folder(node).rename(chain.root / "kept")
    scratch = store.partial(node) / SCRATCH
    by_time = (f"{name}.{MINUTES}",)
    kill_when(lambda: bool(checkpoints(scratch)), chain.root, name, False, cadence=by_time)
    saved = max(checkpoints(scratch))
    assert 0 < saved < before["metrics"]["steps"]
    build(chain.root, f"stage={name}")
    after = store.find(node)
    assert after is not None
    assert after["digest"] == before["digest"]
    steps = [
        json.loads(line) for line in (store.folder(node) / "curves.jsonl").read_text().splitlines()
    ]
    assert [point["step"] for point in steps if "grad_norm" in point].count(saved) == 1, (
        "no step before it again"
    )


@pytest.mark.extended
def test_a_resume_with_another_runtime_gives_the_same(chain: Chain) -> None:
    """Kill with one size of micro-batches and shards, and finish with another."""
    for name, other in (
        ("sample", "sample.runtime.shard_size=5"),
        ("sft", "sft.runtime.micro_batch=16"),
    ):
        node = nodes(chain.root)[name]
        store = Store(chain.root)
        before = store.find(node)
        assert before is not None
        copy = chain.root / f"kept-{name}"
        store.folder(node).rename(copy)
        partial = store.partial(node) / SCRATCH
        pattern = f"checkpoints/*/{SEAL}" if name == "sft" else "shards/*.parquet"
        kill_when(
            lambda folder=partial, p=pattern: bool(list(folder.glob(p))),
            chain.root,
            name,
            at_publish=False,
        )
        build(chain.root, f"stage={name}", other)
        after = store.find(node)
        assert after is not None
        if name == "sample":
            assert [r["token_ids"] for r in rows(store.folder(node))] == [
                r["token_ids"] for r in rows(copy)
            ]
        else:
            assert after["metrics"]["eval_loss"] == pytest.approx(
                before["metrics"]["eval_loss"], abs=1e-5
            )
