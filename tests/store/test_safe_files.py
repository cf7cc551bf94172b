"""Check that a folder, pipe or link in the place of a file is refused in one line and blocks nothing."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.config.blocks.endpoints import Budget, Price
from stages.config.errors import UserError
from stages.endpoints.spending import Spending
from stages.store import locks
from stages.store.allowance import Allowance
from stages.store.call_cache import Calls
from stages.store.safe_files import link, open_regular

ODD: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "a link": lambda path: path.symlink_to(path.with_name("elsewhere")),
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.fspath(path)),
}


def votes_folder(folder: Path) -> Path:
    return Calls(folder, "http://127.0.0.1:9/v1", "m").path


def keep_calls(folder: Path) -> None:
    with Calls(folder, "http://127.0.0.1:9/v1", "m").opened():
        pass


OPENED: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "calls": (votes_folder, keep_calls),
    "a lock": (lambda folder: folder / "x.lock", lambda folder: locks.open_lock(folder / "x.lock")),
    "spending": (
        lambda folder: folder / "s.jsonl",
        lambda f: Spending(f / "s.jsonl", Budget(), Price(), "key", Allowance()),
    ),
    "reading": (lambda folder: folder / "f", lambda folder: open_regular(folder / "f")),
    "appending": (
        lambda folder: folder / "f",
        lambda f: open_regular(f / "f", os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", OPENED)
def test_what_is_no_file_is_one_line(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    place, use = OPENED[name]
    (tmp_path / "elsewhere").write_text("kept\n")
    ODD[kind](place(Path()))
    with pytest.raises(UserError, match=f"is {kind}; a regular file ") as error:
        use(Path())
    assert "\n" not in str(error.value) and place(Path()).name in str(error.value)
    assert (tmp_path / "elsewhere").read_text() == "kept\n"


def test_a_link_is_replaced_and_a_folder_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "latest"
    for target in ("a", "b"):
        link(place, Path(target))
        assert place.readlink() == Path(target)
    place.unlink()
    place.mkdir()
    link(place, Path("c"))
    assert not place.is_symlink() and "is a folder" in caplog.text
    assert [*tmp_path.iterdir()] == [place]
