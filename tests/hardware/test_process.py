"""Tests of the preparation of a process at its start."""

import os

import pytest

from stages.hardware import process


@pytest.mark.parametrize("own", [None, *process.ALLOCATOR])
def test_segments_of_gpu_memory_grow_unless_the_user_chose(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in process.ALLOCATOR:
        monkeypatch.delenv(variable, raising=False)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    process.prepare()
    settings = {
        variable: os.environ[variable] for variable in process.ALLOCATOR if variable in os.environ
    }
    assert settings == (
        {own: "max_split_size_mb:64"} if own else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    )
