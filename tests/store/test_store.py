"""Tests of the store: fingerprints, publishing and locks. Real processes are killed."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.store.node import Node, nearest_by_stage
from stages.store.store import Store
from stages.store.workspace import SCRATCH, StageDir, read_curves
from tests.helpers import nodes, settings
from tests.store.small_nodes import some_nodes


def some_node(**changes: object) -> Node:
    return Node("pairs", 1, replace(settings("recipe=tiny").pairs, **changes))


def publish(store: Store, node: Node, content: str = "x") -> None:
    with store.claim(node) as folder:
        assert folder is not None
        (folder / "product").write_text(content)
        store.publish(node, {"ended": time.time(), "metrics": {}})


def test_runtime_does_not_change_a_fingerprint(tmp_path: Path) -> None:
    plain = nodes(tmp_path)
    other = nodes(
        tmp_path,
        "sft.runtime.micro_batch=1",
        "dpo.runtime.save_steps=3",
        "sample.runtime.batch_size=2",
    )
    assert {n: x.fingerprint for n, x in plain.items()} == {
        n: x.fingerprint for n, x in other.items()
    }


def test_a_setting_changes_its_node_and_what_follows_and_nothing_else(tmp_path: Path) -> None:
    plain = nodes(tmp_path)
    other = nodes(tmp_path, "dpo.beta=0.5")
    changed = {name for name in plain if plain[name].fingerprint != other[name].fingerprint}
    assert changed == {"dpo", "answer_policy", "eval", "report"}


def test_aot_losses_are_not_neutral_to_the_micro_batch(tmp_path: Path) -> None:
    aot = "dpo.loss_type=[aot]"
    one, four = (nodes(tmp_path, aot, f"dpo.runtime.micro_batch={n}")["dpo"] for n in (1, 4))
    assert one.fingerprint != four.fingerprint
    assert one.fixed == {"micro_batch": 1, "processes": 1}


@pytest.mark.parametrize("line", ["control=true control_pairs=coin", "rounds=2"])
def test_the_latest_links_name_the_models_that_the_run_is_about(line: str, tmp_path: Path) -> None:
    """Neither a control, nor a round's policy, nor its answers to validation prompts."""
    graph = nodes(tmp_path, *line.split())
    nearest = nearest_by_stage([graph["report"]])
    for stage in ("pairs", "label", "sample", "sft", "dpo", "reference"):
        assert nearest[stage] is graph[stage]
    assert nearest["answer"] is graph["answer_policy"]


def test_a_file_is_named_by_its_content(tmp_path: Path) -> None:
    row = json.dumps({"instruction": "Say a.", "output": "a"})
    fingerprints = []
    for folder, content in (("one", row), ("two", row), ("three", row + "\n")):
        file = tmp_path / folder / "data.jsonl"
        file.parent.mkdir()
        file.write_text(content)
        fingerprints.append(nodes(tmp_path, f"data.sources=[{{path: {file}}}]")["data"].fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_publishing_leaves_a_whole_node_and_no_scratch(tmp_path: Path) -> None:
    store = Store(tmp_path)
    node = some_node()
    with store.claim(node) as folder:
        assert folder is not None
        (folder / SCRATCH / "checkpoint").write_text("big")
        (folder / "product").write_text("x")
        assert store.find(node) is None
        assert store.state(node) == "resumable"
        store.publish(node, {"ended": time.time(), "metrics": {}})
    manifest = store.find(node)
    assert manifest is not None
    assert list(manifest["files"]) == ["product"]
    assert not (store.folder(node) / SCRATCH).exists()
    assert not store.partial(node).exists()


def test_a_folder_killed_just_before_its_rename_is_published_by_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    node = some_node()
    publish(store, node)
    store.folder(node).rename(store.partial(node))
    with store.claim(node) as folder:
        assert folder is None
    assert store.find(node) is not None


def test_a_damaged_node_counts_as_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    node = some_node()
    publish(store, node, "product")
    (store.folder(node) / "product").write_text("pro")
    assert store.find(node) is None
    publish(store, node, "product")
    assert store.find(node) is not None


def test_a_node_is_stale_once_an_input_holds_something_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    upstream = some_node()
    publish(store, upstream, "one")
    downstream = Node("dpo", 1, settings("recipe=tiny").dpo, {"pairs": upstream})
    publish(store, downstream)
    assert store.find(downstream) is not None

    rebuilding = Store(tmp_path, rebuild="pairs")
    assert rebuilding.find(upstream) is None
    publish(rebuilding, upstream, "one")
    assert rebuilding.find(downstream) is not None, (
        "the same content again leaves what follows valid"
    )

    third = Store(tmp_path, rebuild="pairs")
    publish(third, upstream, "two")
    assert third.find(downstream) is None


def test_rebuild_asks_no_clock(tmp_path: Path) -> None:
    """Check that `rebuild` does not depend on clocks, and that all processes of a command share its new nodes."""
    store = Store(tmp_path)
    node = some_node()
    with store.claim(node) as folder:
        assert folder is not None
        store.publish(node, {"ended": time.time() + 1e6, "metrics": {}})
    rebuilding = Store(tmp_path, rebuild="pairs", command="this one")
    assert rebuilding.find(node) is None
    with rebuilding.claim(node) as folder:
        assert folder is not None
        rebuilding.publish(node, {"ended": time.time() - 1e6, "metrics": {}})
    assert rebuilding.find(node) is not None
    assert Store(tmp_path, rebuild="pairs", command="this one").find(node) is not None, (
        "another job of its sweep"
    )
    assert Store(tmp_path, rebuild="pairs", command="the next").find(node) is None


HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from tests.store.small_nodes import some_nodes
from stages.store.store import Store
store, [node] = Store(Path(sys.argv[1])), some_nodes(1)
with store.claim(node) as folder:
    if len(sys.argv) > 2:
        lock = str(store.lock_file(node.stage, node.fingerprint))
        opened = {os.path.realpath("/proc/self/fd/" + fd): int(fd) for fd in os.listdir("/proc/self/fd")}
        code = f"import pathlib, time; time.sleep(2); pathlib.Path({sys.argv[2]!r}).touch()"
        subprocess.Popen([sys.executable, "-c", code], pass_fds=[opened[lock]])
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child", [False, True])
def test_a_killed_builder_frees_its_node_unless_a_child_lives_on(
    child: bool, tmp_path: Path
) -> None:
    [node] = some_nodes(1)
    store = Store(tmp_path)
    ended = tmp_path / "child-ended"
    line = [sys.executable, "-c", HOLDER, str(tmp_path), *([str(ended)] if child else [])]
    holder = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert store.is_locked(node.stage, node.fingerprint)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with store.claim(node) as folder:
        assert folder is not None
        assert ended.exists() is child


def test_curves_are_strict_json_lines_also_after_a_kill_within_one(tmp_path: Path) -> None:
    work = StageDir(tmp_path, lambda metrics, step: None)
    work.log({"loss": 1.0, "entropy": math.nan}, 1)
    work.log({"loss": 0.5}, 2)
    file = tmp_path / "curves.jsonl"
    whole = file.read_bytes()
    assert b"NaN" not in whole
    for torn in (whole[:-1], whole[:-9]):
        file.write_bytes(torn)
        StageDir(tmp_path, lambda *_: None, is_main=False)  # another process of the same training
        assert file.read_bytes() == torn
        StageDir(tmp_path, lambda *_: None).log({"loss": 0.25}, 2)
        assert read_curves(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.25}]


def test_keys_of_a_mapping_may_have_several_types(tmp_path: Path) -> None:
    typed = ("label=dataset", "label.path=docs/examples/comparisons.jsonl")
    first, second = (
        nodes(tmp_path, *typed, f"label.labels={{{labels}}}")["label"]
        for labels in ("1: a, tie: tie", "tie: tie, 1: a")
    )
    assert first.fingerprint == second.fingerprint


def test_the_roots_of_a_node_are_its_data_and_the_base_that_was_trained(tmp_path: Path) -> None:
    graph = nodes(tmp_path)
    roots = {"base": graph["base"].fingerprint, "data": graph["data"].fingerprint}
    assert graph["dpo"].roots == roots
    assert graph["base"].roots == {"base": roots["base"]}
