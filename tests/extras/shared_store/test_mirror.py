"""Tests of the store that machines share. The server of S3 is real, and its faults too; real processes are killed."""

import logging
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.extras.shared_store.mirror import RemoteMirror, name_of
from stages.extras.shared_store.remote import open_remote
from stages.store import json_log
from stages.store.node import Node
from stages.store.store import Store
from stages.store.workspace import Progress
from tests.extras.shared_store.machine import build_nodes, machine
from tests.extras.shared_store.s3 import S3
from tests.store.small_nodes import some_nodes

FAULTS = ("500", "503", "reset", "lost", "cut")
URLS = ("s3", "folder")


def start(
    root: Path, url: str, count: int, seconds: float = 0.0, lease_seconds: float = 60.0
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "tests.extras.shared_store.machine", str(root), url]
    arguments += [str(count), str(seconds), str(lease_seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, **pipes)


def contents(store: Store, nodes: list[Node]) -> dict[str, bytes]:
    files = dict[str, bytes]()
    for node in nodes:
        for path in store.folder(node).rglob("*"):
            if path.is_file():
                files[str(path.relative_to(store.root))] = path.read_bytes()
    return files


def products(store: Store, nodes: list[Node]) -> dict[str, bytes]:
    """Return the files of nodes without their manifests, which say when they were built."""
    files = contents(store, nodes).items()
    return {name: content for name, content in files if "manifest" not in name}


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(request.getfixturevalue("s3").url)
        if request.param == "s3"
        else str(tmp_path / "shared")
    )


@pytest.mark.extended
def test_a_second_machine_builds_nothing(url: str, tmp_path: Path) -> None:
    nodes = some_nodes(3)
    first = machine(tmp_path / "a", url)
    second = machine(tmp_path / "b", url)
    assert build_nodes(first, nodes) == [1, 2, 3]
    assert build_nodes(second, nodes) == []
    assert contents(first, nodes) == contents(second, nodes)
    assert len(first.mirror.remote.list("files")) == 6  # equal contents are stored once
    assert first.mirror.remote.list("leases") == {}
    assert not [*(tmp_path / "b").glob("*/*.*")]


def test_what_the_mirror_has_is_not_missing_unless_it_is_to_be_rebuilt(tmp_path: Path) -> None:
    nodes = some_nodes(3)
    shared = str(tmp_path / "shared")
    build_nodes(machine(tmp_path / "a", shared), nodes[:2])
    second = machine(tmp_path / "b", shared)
    assert [second.is_built(node) for node in nodes] == [True, True, False]
    assert second.missing(nodes) == {nodes[2]}
    second.rebuild = nodes[0].stage
    assert {*nodes} == second.missing(nodes)


@pytest.mark.extended
def test_faults_of_the_server_change_nothing(s3: S3, tmp_path: Path) -> None:
    nodes = some_nodes(10)
    first = machine(tmp_path / "a", s3.url)
    second = machine(tmp_path / "b", s3.url)
    s3.faults(*FAULTS, share=0.05)
    assert build_nodes(first, nodes) == [*range(1, 11)]
    assert build_nodes(second, nodes) == []
    s3.faults()
    assert contents(first, nodes) == contents(second, nodes)
    counted = s3.faults_file.with_suffix(".counts").read_text()
    assert all(repr(kind) in counted for kind in FAULTS), counted


def test_a_push_that_fails_is_a_warning_and_is_repeated(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = some_nodes(1)
    store = machine(tmp_path / "a", s3.url)
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
def test_kills_of_push_and_pull_lose_nothing(s3: S3, tmp_path: Path) -> None:
    draw = random.Random(3)
    count = 6
    nodes = some_nodes(count)
    reference = Store(tmp_path / "reference")
    build_nodes(reference, nodes)
    machines = (tmp_path / "pushes", tmp_path / "pulls")
    for root in (*machines, machines[0]):
        process = start(root, s3.url, count, seconds=0.05, lease_seconds=1.0)
        assert process.stderr and process.stderr.readline() == "start\n"
        time.sleep(draw.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for root in machines:
        process = start(root, s3.url, count, lease_seconds=1.0)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert products(Store(root), nodes) == products(reference, nodes)
    assert build_nodes(machine(tmp_path / "fresh", s3.url), nodes) == []


@pytest.mark.extended
@pytest.mark.parametrize("is_killed", [False, True])
def test_of_two_machines_one_builds_and_the_lease_of_a_killed_one_expires(
    is_killed: bool, url: str, tmp_path: Path
) -> None:
    first = start(tmp_path / "a", url, 1, seconds=3.0, lease_seconds=1.0)
    assert first.stderr and first.stderr.readline() == "start\n"
    assert first.stderr.readline() == "building 1\n"
    if is_killed:
        first.kill()
    second = start(tmp_path / "b", url, 1, lease_seconds=1.0)
    out, errors = second.communicate(timeout=60)
    assert out.strip() == ("1" if is_killed else ""), errors
    assert first.communicate(timeout=60)[0].strip() == ("" if is_killed else "1")


def spoil(kind: str, store: Store, node: Node, tmp_path: Path) -> None:
    remote = store.mirror.remote
    name = name_of(node)
    if kind == "content":
        other = tmp_path / "other"
        other.write_bytes(b"y" * 3000)
        remote.upload(f"files/{store.find(node)['files']['product']['sha256']}", other)
        return
    remote.delete([name])
    remote.put(name, b"{")


@pytest.mark.parametrize("kind", ["content", "json"])
def test_a_spoiled_node_is_refused_and_replaced(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "shared")
    nodes = some_nodes(1)
    first = machine(tmp_path / "a", url)
    second = machine(tmp_path / "in" / "b", url)
    build_nodes(first, nodes)
    spoil(kind, first, nodes[0], tmp_path)
    assert build_nodes(second, nodes) == [1]
    refusals = [r.getMessage() for r in caplog.records if "is not used" in r.getMessage()]
    assert len(refusals) == 1 and "store.remote" in refusals[0]
    assert build_nodes(machine(tmp_path / "c", url), nodes) == []  # the remote is repaired


def test_the_first_publisher_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, [node] = str(tmp_path / "shared"), some_nodes(1)
    first = machine(tmp_path / "a", url)
    alone = Store(tmp_path / "b")
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
    first = machine(tmp_path / "a", url)
    second = machine(tmp_path / "b", url)
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


@pytest.mark.parametrize(
    "address",
    ["s3://user:word@bucket/x", "az://container/x?sig=word", "ftp://host/x"],
)
def test_an_address_with_credentials_or_of_another_kind_is_refused(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^store\.remote=") as refusal:
        RemoteMirror(address, tmp_path)
    assert "word" not in str(refusal.value)


def test_a_remote_that_cannot_be_reached_is_one_line(s3: S3) -> None:
    with pytest.raises(UserError, match=r"^store\.remote=.*store\.remote=null"):
        open_remote(s3.url.replace("bucket", "absent"))


def test_gc_removes_what_no_report_reaches(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    nodes = some_nodes(3)
    store = machine(tmp_path / "a", url)
    build_nodes(store, nodes)
    mirror = store.mirror
    needed = {("pairs", nodes[0].fingerprint)}
    mirror.collect(needed, remove=True, kept_seconds=60.0)
    assert len(mirror.remote.list("nodes")) == 3  # they are young
    mirror.collect(needed, remove=True, kept_seconds=-1.0)
    assert [*mirror.remote.list("nodes")] == [name_of(nodes[0])]
    assert len(mirror.remote.list("files")) == 2


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_remote_that_only_reads_is_pulled_from(
    s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = some_nodes(2)
    build_nodes(machine(tmp_path / "a", s3.url), nodes[:1])
    s3.faults("read-only", share=1.0)
    reader = machine(tmp_path / "b", s3.url)
    calls = reader.root / "cache" / "calls" / "model.jsonl"
    calls.parent.mkdir(parents=True)
    calls.write_bytes(json_log.sealed({"number": 1}))
    assert build_nodes(reader, nodes) == [2], "it pulls the first, and sends nothing"
    [warning] = warnings(caplog)
    assert f"store.remote={s3.url}" in warning
    with pytest.raises(UserError, match=r"^store\.remote="):
        reader.share_all()


def away(kind: str, s3: S3, folder: Path) -> None:
    """Let a remote that was opened fail from now on."""
    if kind == "a file":
        shutil.rmtree(folder)
        folder.write_text("no folder")
    else:
        s3.faults(kind, share=1.0)


@pytest.mark.parametrize("is_opened", [True, False])
@pytest.mark.parametrize("kind", ["403", "a file"])
def test_a_run_goes_on_without_a_remote_that_is_away(
    kind: str, is_opened: bool, s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    url = str(folder) if kind == "a file" else s3.url
    nodes = some_nodes(3)
    store = machine(tmp_path / "a", url)
    build_nodes(store, nodes[:1])
    if not is_opened:
        store = machine(tmp_path / "a", url)
    away(kind, s3, folder)
    with pytest.raises(UserError, match=r"^store\.remote=") as refusal:
        build_nodes(store, nodes)
    assert [bool(store.find(node)) for node in nodes] == [True] * 3
    assert len(warnings(caplog)) == 1, "the first failure is said, the others cost nothing"
    assert str(nodes[1]) in str(refusal.value) and str(nodes[0]) not in str(refusal.value)
    arguments = re.findall(r"stage=sync outputs=\S+ store\.remote=\S+", str(refusal.value))
    assert arguments == [f"stage=sync outputs={store.root} store.remote={url}"]
    build_nodes(machine(tmp_path / "a", url), [])  # nothing to send is no error
    s3.faults()
    if kind == "a file":
        folder.unlink()
    sender = machine(tmp_path / "a", url)
    sender.share_all()
    sender.mirror.raise_unsent()
    assert build_nodes(machine(tmp_path / "b", url), nodes) == []


def test_without_sync_the_same_command_sends_what_was_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.extras.shared_store.mirror.EXTRAS", ("shared_store",))
    folder = tmp_path / "shared"
    folder.write_text("no folder")
    nodes = some_nodes(1)
    with pytest.raises(UserError, match="the same command") as refusal:
        build_nodes(machine(tmp_path / "a", str(folder)), nodes)
    assert "stage=sync" not in str(refusal.value)
    folder.unlink()
    assert build_nodes(machine(tmp_path / "a", str(folder)), nodes) == []
    assert build_nodes(machine(tmp_path / "b", str(folder)), nodes) == []


def test_a_remote_that_fails_during_a_pull_costs_a_build(
    s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = some_nodes(1)
    build_nodes(machine(tmp_path / "a", s3.url), nodes)
    second = machine(tmp_path / "b", s3.url)
    assert second.mirror.has(nodes[0])
    s3.faults("403", share=1.0)
    with pytest.raises(UserError, match="stage=sync"):
        assert build_nodes(second, nodes) == [1]
    assert second.find(nodes[0]) and len(warnings(caplog)) == 1


@pytest.mark.extended
def test_a_slow_push_says_how_far_it_is(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Progress, "LOGGED_EVERY", 0.5)
    monkeypatch.setattr(Progress, "SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    nodes = some_nodes(4)
    build_nodes(Store(tmp_path / "a"), nodes)
    s3.faults("slow", share=1.0)
    store = machine(tmp_path / "a", s3.url)
    store.share_all()
    s3.faults()
    lines = [each.getMessage() for each in caplog.records]
    total = 4 * 3001
    assert any(
        re.search(rf"[\d,]+/{total:,} bytes, [\d,.]+/s, \d+:\d\d left", line) for line in lines
    ), lines
    assert store.mirror.sent_nodes == 4 and store.mirror.sent_bytes == total


@pytest.mark.extended
def test_a_large_file_is_sent_in_parts_that_are_counted(s3: S3, tmp_path: Path) -> None:
    remote = open_remote(s3.url)
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(20_000_000))
    for url in (s3.url, str(tmp_path / "shared")):
        remote = open_remote(url)
        sent, fetched = list[int](), list[int]()
        remote.upload("files/large", path, sent.append)
        remote.download("files/large", tmp_path / "copy", path.stat().st_size, fetched.append)
        assert sent == fetched == [0, 8 << 20, 16 << 20, 20_000_000]
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        (tmp_path / "copy").unlink()
