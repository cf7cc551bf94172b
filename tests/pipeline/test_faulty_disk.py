"""Tests of stores that cannot be written, or whose disk or mount fails: one line names the file and a way out, and no run
ends because of a page."""

import errno
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.cli.explain import explain
from stages.commands.run_result import page_address
from stages.config.errors import UserError
from stages.launch.job_file import failure_of, write_failure
from stages.store import locks
from stages.store.store import Store
from stages.store.workspace import Progress
from tests.helpers import TINY, Chain, as_typed, inside, nodes, refused
from tests.pages.test_live import live_page

# of a store's file
ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ESTALE, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.EXDEV),
    *(errno.ENOTCONN, errno.ENODEV, errno.EBUSY, errno.EMLINK, errno.ENOTEMPTY),
)
WITHOUT_NAME = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOLCK)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def mounted(folder: Path, *mounts: tuple[str, ...]) -> Iterator[None]:
    """Mount something on a folder. Skip the test where that is not allowed."""
    for arguments in mounts:
        ran = subprocess.run(["mount", *arguments, str(folder)], check=False, capture_output=True)
        if ran.returncode:
            pytest.skip(f"cannot mount: {ran.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_only(folder: Path) -> tuple[tuple[str, ...], ...]:
    return ("--bind", str(folder)), ("-o", "remount,bind,ro")


def explained(error: OSError, root: Path) -> str | None:
    with as_typed(f"outputs={root}"):
        return explain(error)


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_every_error_of_a_stores_file_is_one_line(number: int, tmp_path: Path) -> None:
    file = tmp_path / "data" / "0123456789ab" / "examples.parquet"
    line = explained(OSError(number, os.strerror(number), str(file)), tmp_path)
    assert line and "\n" not in line
    assert str(file) in line and os.strerror(number) in line
    assert "outputs=" in line or "ulimit" in line or "Remove" in line
    missing = FileNotFoundError(errno.ENOENT, "no", f"{tmp_path}-other/file")
    assert explained(missing, tmp_path) is None, "perhaps a bug"


@pytest.mark.parametrize("number", WITHOUT_NAME, ids=errno.errorcode.get)
def test_an_error_of_an_open_file_needs_no_name(number: int, tmp_path: Path) -> None:
    line = explained(OSError(number, os.strerror(number)), tmp_path)
    assert line and os.strerror(number) in line and "outputs=FOLDER" in line


@pytest.mark.extra("gc")
@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named(
    number: int, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    line = refused(*TINY, "stage=data", f"outputs={chain.root}")
    assert line.startswith(f"{chain.root / locks.STORE}: ") and "outputs=FOLDER" in line
    line = refused(*TINY, "stage=gc", "gc.remove=true", f"outputs={chain.root}")
    assert line.startswith(f"{chain.root / locks.STORE}: ")
    store = Store(chain.root)
    with pytest.raises(OSError) as failure, store.lock("data", "0123456789ab"):
        pass
    assert failure.value.filename == str(store.lock_file("data", "0123456789ab"))


@pytest.mark.extended
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_a_disk_that_fails_while_a_node_is_published_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    line = refused(*TINY, "stage=data", f"outputs={tmp_path}")
    assert line.startswith(f"{tmp_path}/data/") and os.strerror(number) in line
    assert "outputs=FOLDER" in line


def test_a_worker_hands_on_the_line(tmp_path: Path) -> None:
    write_failure(tmp_path, 0, OSError(errno.EIO, os.strerror(errno.EIO), "/store/weights"))
    failure = failure_of(tmp_path, 1)
    assert isinstance(failure, UserError) and "/store/weights" in str(failure)


def one_warning(caplog: pytest.LogCaptureFixture, root: Path) -> str:
    [record] = caplog.records
    assert record.exc_info is None
    message = record.getMessage()
    assert message.startswith("warning: ") and "\n" not in message and str(root) in message
    return message


BLOCKS = {
    "a file as pages": lambda root: (root / "pages").write_text("x"),
    "a folder as report.html": lambda root: (root / "report.html" / "x").mkdir(parents=True),
    "a folder as index.html": lambda root: (root / "index.html").mkdir(),
    "a link to itself": lambda root: (root / "pages").symlink_to("pages"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_page_that_cannot_be_written_is_one_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BLOCKS[name](tmp_path)
    page = live_page(tmp_path)
    with page:
        page.tell(page.nodes[0], "running")
        page.tell(page.nodes[0], "done")
    one_warning(caplog, tmp_path)
    assert page_address(page) is None


@pytest.mark.parametrize("number", [*WITHOUT_NAME, errno.EMFILE], ids=errno.errorcode.get)
def test_a_page_on_a_faulty_disk_is_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    page = live_page(tmp_path)
    page.seconds_left = fail  # a forecast reads manifests
    with page, Progress(10, "data", "row"):
        page.tell(page.nodes[0], "running")
        page.attempt(page.look_ahead)
    assert os.strerror(number) in one_warning(caplog, tmp_path)


@pytest.mark.extended
def test_a_full_disk_costs_only_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(tmp_path, ("-t", "tmpfs", "-o", "size=64k", "tmpfs")):
        with pytest.raises(OSError):
            (tmp_path / "filler").write_bytes(bytes(1 << 20))
        with live_page(tmp_path):
            pass
        one_warning(caplog, tmp_path)


@pytest.mark.extra("compare")
@pytest.mark.extended
def test_a_read_only_store_is_read_and_says_once_that_it_has_no_page(chain: Chain) -> None:
    node = nodes(chain.root, "data.seed=5")["data"]
    line = (*TINY, f"outputs={chain.root}")
    with mounted(chain.root, *read_only(chain.root)):
        cached = inside(*line)
        compared = inside(*line, "stage=compare")
        built = inside(*line, "stage=data", "data.seed=5")
    for ran in (cached, compared, built):
        assert "Traceback" not in ran.stdout + ran.stderr
        assert (ran.stdout + ran.stderr).count("warning: ") == 1, ran.stdout
    assert (cached.returncode, compared.returncode, built.returncode) == (0, 0, 1)
    assert f"The report: {chain.folder('report') / 'report.html'}" in cached.stdout
    [error] = [each for each in built.stderr.splitlines() if each.startswith("error: ")]
    assert node.fingerprint in error and "outputs=FOLDER" in error
