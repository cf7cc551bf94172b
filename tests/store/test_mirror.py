"""Tests of the store that machines share. The server of S3 is real, and its faults too; real processes are killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.store import json_log, locks
from stages.store.mirror import Mirror, name_of
from stages.store.node import Node, in_build_order
from stages.store.remote import open_remote
from stages.store.shared_calls import pull_calls
from stages.store.store import Store
from tests.store.machine import Block, build_nodes, machine, some_nodes
from tests.store.s3 import S3

FAULTS = ("500", "503", "reset", "lost", "cut")
URLS = ("s3", "folder")


def start(
    root: Path, url: str, count: int, seconds: float = 0.0, lease_seconds: float = 60.0
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.store.machine", str(root), url]
    arguments += [str(count), str(seconds), str(lease_seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, **pipes)


def contents(store: Store, nodes: list[Node]) -> dict[str, bytes]:
    paths = [
        path for node in nodes for path in sorted(store.folder(node).rglob("*")) if path.is_file()
    ]
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(request.getfixturevalue("s3").url)
        if request.param == "s3"
        else str(tmp_path / "shared")
    )


@pytest.mark.extended
def test_a_second_machine_builds_nothing(url: str, tmp_path: Path) -> None:
    nodes, first, second = some_nodes(3), machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    assert build_nodes(first, nodes) == [1, 2, 3]
    assert build_nodes(second, nodes) == []
    assert contents(first, nodes) == contents(second, nodes)
    assert all(
        second.damage_message(second.folder(node), manifest) == ""
        for node in nodes
        for manifest in [second.find(node)]
    )
    assert len(first.mirror.remote.list("files")) == 6  # equal contents are stored once
    assert first.mirror.remote.list("leases") == {}
    assert not [*(tmp_path / "b").glob("*/*.*")]


@pytest.mark.extended
@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_faults_of_the_server_change_nothing(s3: S3, tmp_path: Path, count: int) -> None:
    nodes, first, second = (
        some_nodes(count),
        machine(tmp_path / "a", s3.url),
        machine(tmp_path / "b", s3.url),
    )
    s3.faults(*FAULTS, share=0.05)
    assert build_nodes(first, nodes) == [*range(1, count + 1)]
    assert build_nodes(second, nodes) == []
    s3.faults()
    assert contents(first, nodes) == contents(second, nodes)
    third = machine(tmp_path / "c", s3.url)
    s3.faults("hang", share=0.02 if count > 10 else 0.2)
    third.mirror.remote  # noqa: B018
    s3.faults("hang", share=0.05)
    assert build_nodes(third, nodes[:10]) == []
    s3.faults()
    counted = s3.faults_file.with_suffix(".counts").read_text()
    assert all(repr(kind) in counted for kind in FAULTS), counted


def test_a_push_that_fails_is_a_warning_and_is_repeated(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, store = some_nodes(1), machine(tmp_path / "a", s3.url)
    remote = store.mirror.remote
    retries = {"max_retries": 0}
    from obstore.store import from_url

    monkeypatch.setattr(remote, "store", from_url(s3.url, retry_config=retries))
    with pytest.raises(UserError, match=r"store\.remote=.*not sent: pairs"), store.exchange(nodes):
        with store.claim(nodes[0]) as folder:
            (folder / "product").write_text("x")
            s3.faults("500", share=1.0)
            store.publish(nodes[0], {"ended": time.time(), "metrics": {}})
        s3.faults()
    assert store.find(nodes[0])
    assert build_nodes(machine(tmp_path / "a", s3.url), nodes) == []
    assert build_nodes(machine(tmp_path / "b", s3.url), nodes) == []


@pytest.mark.extended
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_of_push_and_pull_lose_nothing(s3: S3, tmp_path: Path, kills: int) -> None:
    draw, count = random.Random(kills), 6
    nodes, reference = some_nodes(count), Store(tmp_path / "reference")
    build_nodes(reference, nodes)
    products = {
        name: content
        for name, content in contents(reference, nodes).items()
        if "manifest" not in name
    }
    for kill in range(kills):
        root = tmp_path / f"machine{kill % 2}"  # the first pushes, the second pulls
        process = start(root, s3.url, count, seconds=0.05, lease_seconds=1.0)
        assert process.stderr and process.stderr.readline() == "start\n"
        time.sleep(draw.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for name in ("machine0", "machine1"):
        process = start(tmp_path / name, s3.url, count, lease_seconds=1.0)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        finished = contents(Store(tmp_path / name), nodes)
        assert {
            name: content for name, content in finished.items() if "manifest" not in name
        } == products
    assert build_nodes(machine(tmp_path / "fresh", s3.url), nodes) == []


@pytest.mark.extended
def test_of_two_machines_one_builds_and_the_other_pulls(url: str, tmp_path: Path) -> None:
    first = start(tmp_path / "a", url, 1, seconds=3.0, lease_seconds=1.5)
    assert first.stderr and [first.stderr.readline(), first.stderr.readline()] == [
        "start\n",
        "building 1\n",
    ]
    second = start(tmp_path / "b", url, 1, lease_seconds=1.5)
    out, errors = second.communicate(timeout=60)
    assert (out.strip(), second.returncode) == ("", 0), errors
    assert first.communicate(timeout=60)[0].strip() == "1"


@pytest.mark.extended
def test_the_lease_of_a_killed_machine_expires(url: str, tmp_path: Path) -> None:
    first = start(tmp_path / "a", url, 1, seconds=60.0, lease_seconds=1.0)
    assert first.stderr and [first.stderr.readline(), first.stderr.readline()] == [
        "start\n",
        "building 1\n",
    ]
    first.kill()
    first.communicate()
    second = start(tmp_path / "b", url, 1, lease_seconds=1.0)
    out, errors = second.communicate(timeout=60)
    assert out.strip() == "1", errors


def spoil(kind: str, store: Store, node: Node, tmp_path: Path) -> None:
    remote, name = store.mirror.remote, name_of(node)
    if kind == "content":
        other = tmp_path / "other"
        other.write_bytes(b"y" * 3000)
        remote.upload(f"files/{store.find(node)['files']['product']['sha256']}", other)
        return
    content = json.loads(remote.get(name)[0])
    if kind == "path":
        content["files"]["../../escaped"] = content["files"]["product"]
    elif kind == "digest":
        content["files"]["product"]["sha256"] = "../" * 20 + "etc"
    elif kind == "fingerprint":
        content["fingerprint"] = "0" * 12
    remote.delete([name])
    remote.put(name, b"{" if kind == "json" else json.dumps(content).encode())


@pytest.mark.parametrize("kind", ["content", "path", "digest", "fingerprint", "json"])
def test_a_spoiled_node_is_refused_and_replaced(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, nodes = str(tmp_path / "shared"), some_nodes(1)
    first, second = machine(tmp_path / "a", url), machine(tmp_path / "in" / "b", url)
    build_nodes(first, nodes)
    spoil(kind, first, nodes[0], tmp_path)
    before = {
        path
        for path in tmp_path.rglob("*")
        if "/in" not in str(path) and "/shared" not in str(path)
    }
    assert build_nodes(second, nodes) == [1]
    refusals = [r.getMessage() for r in caplog.records if "is not used" in r.getMessage()]
    assert len(refusals) == 1 and "store.remote" in refusals[0] and "\n" not in refusals[0]
    assert {
        p for p in tmp_path.rglob("*") if "/in" not in str(p) and "/shared" not in str(p)
    } == before
    assert build_nodes(machine(tmp_path / "c", url), nodes) == []  # the remote is repaired


def test_a_node_of_other_inputs_is_not_fetched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, [parent] = str(tmp_path / "shared"), some_nodes(1)
    child, second = Node("dpo", 1, Block(), {"pairs": parent}), Store(tmp_path / "b")
    for store, content in ((machine(tmp_path / "a", url), "theirs"), (second, "mine")):
        with store.exchange([parent, child]):
            for node in [parent] if store is second else [parent, child]:
                with store.claim(node) as folder:
                    (folder / "product").write_text(content)
                    inputs = (
                        {"pairs": {"digest": store.find(parent)["digest"]}} if node is child else {}
                    )
                    store.publish(node, {"ended": time.time(), "metrics": {}, "inputs": inputs})
    second = machine(tmp_path / "b", url)
    second.mirror.remote.delete(["files/" + hashlib.sha256(b"theirs").hexdigest()])
    assert second.missing([child], pull=True) == {child}
    assert not [r for r in caplog.records if "is not used" in r.getMessage()], (
        "its files would be missed"
    )


def test_the_first_publisher_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, [node] = str(tmp_path / "shared"), some_nodes(1)
    first, alone = machine(tmp_path / "a", url), Store(tmp_path / "b")
    build_nodes(first, [node])
    with alone.claim(node) as folder:
        (folder / "product").write_text("another result")
        alone.publish(node, {"ended": time.time(), "metrics": {}})
    second = machine(tmp_path / "b", url)
    assert build_nodes(second, [node]) == []
    assert contents(first, [node]) == contents(second, [node])
    assert any("published first" in record.getMessage() for record in caplog.records)


def test_calls_and_journals_are_exchanged(url: str, tmp_path: Path) -> None:
    lines = [json_log.sealed({"number": number}) for number in range(4)]
    first, second = machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    for store, own in ((first, lines[:2]), (second, lines[2:])):
        for name in ("calls/model.jsonl", "calls/people/ann.jsonl"):
            file = store.root / "cache" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"".join(own) + b'{"torn')
    for store in (first, second, first, second):
        build_nodes(store, [])
    for store in (first, second):
        for name in ("calls/model.jsonl", "calls/people/ann.jsonl"):
            content = (store.root / "cache" / name).read_bytes()
            assert all(content.count(line) == 1 for line in lines), content
    assert len(first.mirror.remote.list("calls")) == 4


def test_pulled_answers_come_in_the_order_of_their_pushes(tmp_path: Path) -> None:
    """Check that a withdrawn answer stays withdrawn: of a person's answers to one question, the last counts."""
    remote, lines = (
        tmp_path / "remote",
        [json_log.sealed({"number": number}) for number in range(8)],
    )
    for number, line in enumerate(lines):
        segment = remote / "calls" / "people" / "ann.jsonl" / hashlib.sha256(line).hexdigest()
        segment.parent.mkdir(parents=True, exist_ok=True)
        segment.write_bytes(line)
        os.utime(segment, (number, number))
    calls = tmp_path / "calls"
    pull_calls(open_remote(str(remote)), tmp_path / "copies", calls)
    assert (calls / "people" / "ann.jsonl").read_bytes().splitlines(keepends=True) == lines


@pytest.mark.extended
@pytest.mark.parametrize(("fault", "share"), [("lost", 0.5), ("hang", 0.2)])
def test_a_lost_answer_to_a_conditional_write_counts_as_written(
    fault: str, share: float, s3: S3
) -> None:
    remote = open_remote(s3.url)
    s3.faults(fault, share=share)
    for number in range(6):
        assert remote.put(f"lease{number}", b"ours")
        assert not remote.put(f"lease{number}", b"others")
    s3.faults()
    assert [remote.get(f"lease{number}")[0] for number in range(6)] == [b"ours"] * 6


@pytest.mark.parametrize(
    "address",
    ["s3://user:word@bucket/x", "az://container/x?sig=word", "ftp://host/x", "s3:///x", "x"],
)
def test_an_address_with_credentials_or_of_another_kind_is_refused(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^store\.remote=") as refusal:
        Mirror(address, tmp_path)
    assert "word" not in str(refusal.value)


def test_a_remote_that_cannot_be_reached_is_one_line(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^store\.remote=.*store\.remote=null") as refusal:
        open_remote(s3.url.replace("bucket", "absent"))
    assert "\n" not in str(refusal.value)


def test_gc_removes_what_no_report_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, nodes = str(tmp_path / "shared"), some_nodes(3)
    store = machine(tmp_path / "a", url)
    build_nodes(store, nodes)
    mirror, needed = store.mirror, {("pairs", nodes[0].fingerprint)}
    mirror.collect(needed, remove=True)
    assert len(mirror.remote.list("nodes")) == 3  # they are young
    monkeypatch.setattr("stages.store.mirror.KEPT_SECONDS", -1.0)
    mirror.collect(needed, remove=False)
    assert len(mirror.remote.list("nodes")) == 3
    mirror.collect(needed, remove=True)
    assert [*mirror.remote.list("nodes")] == [name_of(nodes[0])]
    assert len(mirror.remote.list("files")) == 2
    assert build_nodes(machine(tmp_path / "b", url), nodes[:1]) == []


SFT = Node("sft", 1, Block())
DPO = Node("dpo", 1, Block(), {"sft": SFT})
EVAL = Node("eval", 1, Block(), {"sft": SFT, "policy": DPO})


def build_chain(store: Store, nodes: list[Node], maker: str) -> list[str]:
    """Build missing nodes out of what their inputs hold, and return their stages."""
    built = []
    with store.exchange(nodes):
        missing = store.missing(nodes, pull=True)
        for node in (node for node in in_build_order(nodes) if node in missing):
            with store.claim(node) as folder:
                if folder:
                    made_of = [
                        (store.folder(each) / "product").read_text()
                        for each in node.inputs.values()
                    ]
                    (folder / "product").write_text(f"{node.stage} by {maker} of {made_of}")
                    store.publish(node, {"ended": time.time(), "metrics": {}})
                    built.append(node.stage)
    return built


def test_a_policy_of_another_sft_is_not_evaluated_beside_the_shared_one(tmp_path: Path) -> None:
    """The policy is pulled before its SFT, which was rebuilt since and shows that the policy is out of date."""
    url = str(tmp_path / "remote")
    first, third = machine(tmp_path / "a", url), machine(tmp_path / "c", url)
    build_chain(first, [DPO], "first")
    build_chain(Store(first.root, rebuild="sft", mirror=first.mirror), [SFT], "second")
    assert build_chain(third, [EVAL], "third") == ["dpo", "eval"]
    assert "dpo by first" not in (third.folder(EVAL) / "product").read_text()
    assert build_chain(third, [EVAL], "third") == []


def test_sync_sends_nothing_that_is_out_of_date_here(tmp_path: Path) -> None:
    """Two machines built a chain apart. The second takes the first one's SFT, so its own policy is no longer valid."""
    url, stores = str(tmp_path / "remote"), [Store(tmp_path / name) for name in ("a", "b")]
    for store in stores:
        assert build_chain(store, [DPO], store.root.name) == ["sft", "dpo"]
    for store in stores:
        machine(store.root, url).share_all()
    third = machine(tmp_path / "c", url)
    assert build_chain(third, [DPO], "c") == []
    assert (third.folder(DPO) / "product").read_text().startswith("dpo by a")


def test_a_journal_that_is_in_use_keeps_no_other_command_waiting(tmp_path: Path) -> None:
    url, line = str(tmp_path / "remote"), json_log.sealed({"number": 1})
    first, second = machine(tmp_path / "a", url), machine(tmp_path / "b", url)
    journals = [
        store.root / "cache" / "calls" / "people" / "ann.jsonl" for store in (first, second)
    ]
    for journal in journals:
        journal.parent.mkdir(parents=True)
    journals[0].write_bytes(line)
    build_nodes(first, [])
    lock = journals[1].with_name("people.lock")
    with locks.hold_lock(locks.open_lock(lock), "the page"):
        build_nodes(second, [])  # it would wait for itself
    assert not journals[1].exists()
    build_nodes(second, [])
    assert journals[1].read_bytes() == line
