"""Edits in a copy of the checkout: a file's content for the time of a test, and an edit of DPO's loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOSS = "return super().compute_loss(model"
OTHER_LOSS = "return 7 * super().compute_loss(model"


@contextmanager
def content(file: Path, new: str | bytes | None) -> Iterator[None]:
    """Give a file this content, or remove it, and give it its own content again at the end."""
    before = file.read_bytes() if file.exists() else None
    write(file, new)
    try:
        yield
    finally:
        write(file, before)


def write(file: Path, new: str | bytes | None) -> None:
    file.unlink(missing_ok=True)
    if new is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(new.encode() if isinstance(new, str) else new)
