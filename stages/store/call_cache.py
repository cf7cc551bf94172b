"""Calls that cost money or time are kept: what an endpoint's model answered to each request.

One file per endpoint and model, in `outputs/cache/calls/`, that is only ever appended to (`json_log.py`). A line is
durable before anybody sees the answer in it, so that a kill loses no answer that had come. One process at a time asks
a model at an endpoint: two of them would not know of each other's calls, nor keep to its limits.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.store import json_log, locks
from stages.store.records import content_id
from stages.store.sealed_json import WRONG_SHAPE


def key_of(call: Mapping[str, Any]) -> str:
    """Return the key of a call: equal requests to one endpoint are one call, whoever asks."""
    content = {name: call[name] for name in ("endpoint", "request")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_in(row: Any) -> str:
    """Return the key of a line, whose answer is a text. Earlier versions wrote the purpose of a call into its key
    (`about`), and so paid for equal requests twice: their lines are found by their requests."""
    if set(row) != {"key", "at", "asked", "answer"} or not isinstance(row["answer"], str):
        raise TypeError("not an answer")
    key = key_of(row["asked"]) if "about" in row["asked"] else row["key"]
    if not isinstance(key, str):
        raise TypeError("not a key")
    return key


class Calls(json_log.Appender):
    """The answers of one endpoint's model. To be used inside `opened`."""

    def __init__(self, folder: Path, endpoint: str, model: str):
        super().__init__(folder / f"{content_id(endpoint, model)}.jsonl")
        self.of = f"{model} at {endpoint}"
        self.places: dict[str, tuple[int, int]] = {}  # of every key's line: where it begins, how long it is

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file, after any other process that has it, and know what is in it."""
        lock = locks.open_lock(self.path.with_suffix(".lock"))
        with locks.hold_lock(lock, self.of, "asked"):
            lines = json_log.read(self.path, key_in, "What they hold is asked again where it is needed.")
            self.places = {line.value: (line.place, line.length) for line in lines}  # the newest line counts
            with super().opened():
                yield

    def __len__(self) -> int:
        return len(self.places)

    def get(self, key: str) -> str | None:
        """Return what was answered under this key; None where nothing was, or what the disk has changed since."""
        if key not in self.places:
            return None
        place, length = self.places[key]
        try:
            return str(json_log.parse(os.pread(self.file, length, place))["answer"])
        except WRONG_SHAPE:
            del self.places[key]
            return None

    def store_answer(self, key: str, call: Mapping[str, Any], answer: str) -> None:
        """Append an answer with what was asked. It is on the disk when `durable` returns."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json_log.sealed({"key": key, "at": at, "asked": call, "answer": answer})
        self.places[key] = self.append(line), len(line)
