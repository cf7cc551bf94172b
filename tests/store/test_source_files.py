"""The files that a setting names: which ones of a folder are data, and what is refused."""

from pathlib import Path

import pytest

from stages.store.source_files import Pins, data_files


def test_hidden_files_cards_and_partial_files_of_a_folder_are_not_data(tmp_path: Path) -> None:
    names = ["a.jsonl", "b_.csv", "inner/c.parquet", "d.JSON"]
    left_out = ["_d.jsonl", ".e.jsonl", "README.md", "dataset_info.json", ".hidden/f.jsonl"]
    for name in names + left_out:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert data_files(tmp_path, "data.path") == sorted(tmp_path / name for name in names)


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [("file", {"file"}), ("folder", {"folder"}), ("file or folder", {"file", "folder"})],
)
def test_a_file_and_a_folder_are_not_taken_for_each_other(
    kind: str, accepted: set[str], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/inside"):
        (tmp_path / name).write_text("a")
    for name in ("file", "folder", "missing"):
        pins = Pins(tmp_path / "cache")
        path = str(tmp_path / name)
        pins.pin_file(path, "select.path", kind)
        assert [*pins.digest_by_path] == ([path] if name in accepted else [])
        assert bool(pins.errors.messages) == (name not in accepted)
    nothing = Pins(tmp_path / "cache")
    nothing.pin_file(None, "select.path", kind)
    assert not nothing.digest_by_path
    assert not nothing.errors.messages
