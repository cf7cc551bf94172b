"""Calls that cost money or time are kept: what an endpoint's model answered to each request.

One file per endpoint and model, in `outputs/cache/calls/`, that is only ever appended to. A line is durable before
anybody sees the answer in it, so that a kill loses no answer that had come. One process at a time asks a model at an
endpoint: two of them would not know of each other's calls, nor keep to its limits.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.store import locks
from stages.store.kept import WRONG_SHAPE, sync
from stages.store.records import content_id
from stages.store.regular import open_regular

log = logging.getLogger(__name__)


def key_of(call: Mapping[str, Any]) -> str:
    """Return the key of a call: equal requests to one endpoint are one call, whoever asks."""
    content = {name: call[name] for name in ("endpoint", "request")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Calls:
    """The answers of one endpoint's model. To be used inside `opened`."""

    def __init__(self, folder: Path, endpoint: str, model: str):
        self.path, self.of = folder / f"{content_id(endpoint, model)}.jsonl", f"{model} at {endpoint}"
        self.places: dict[str, tuple[int, int]] = {}  # of every key's line: where it begins, how long it is
        self.file = -1

    @contextmanager
    def opened(self) -> Iterator["Calls"]:
        """Hold the file, after any other process that has it, and know what is in it."""
        lock = locks.opened(self.path.with_suffix(".lock"))
        with locks.held(lock, self.of, "asked"):
            self.file = open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                sync(self.path.parent)
                self._read()
                yield self
            finally:
                os.close(self.file)

    def _read(self) -> None:
        """Find every line; the newest answer to a request counts. A line that a kill cut off, or that a hand damaged,
        is passed over and stays in the file. Earlier versions wrote the purpose of a call into its key (`about`), and
        so paid for equal requests twice: their lines are found by their requests."""
        self.places, place, line, torn = {}, 0, b"\n", 0
        with open(self.path, "rb") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    key = key_of(row["asked"]) if "about" in row["asked"] else str(row["key"])
                    self.places[key] = place, len(line)
                except WRONG_SHAPE:
                    torn += 1
                place += len(line)
        if torn:
            log.warning(
                "warning: %s: %d lines cannot be read, and are asked again where they are needed.", self.path, torn
            )
        if not line.endswith(b"\n"):
            os.write(self.file, b"\n")

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> Any:
        """What was answered under this key; None where nothing was."""
        if key not in self.places:
            return None
        place, length = self.places[key]
        return json.loads(os.pread(self.file, length, place))["answer"]

    def keep(self, key: str, asked: Mapping[str, Any], answer: Any) -> None:
        """Append an answer with what was asked, on the disk when this returns."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json.dumps({"key": key, "at": at, "asked": asked, "answer": answer}).encode() + b"\n"
        place, left = os.lseek(self.file, 0, os.SEEK_END), line
        while left:
            left = left[os.write(self.file, left) :]
        os.fsync(self.file)
        self.places[key] = place, len(line)
