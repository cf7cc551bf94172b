"""The cache of calls to endpoints, which cost money or time: a model's answer to each request.

`outputs/cache/calls/` has an append-only file per endpoint and model (`json_log.py`). Each answer is synced to the
disk before it is used, so that a kill loses no paid answer. Only one process at a time calls a model at an endpoint,
since two would neither see each other's calls nor share its rate limits."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.store import json_log, locks
from stages.store.allowance import Allowance
from stages.store.records import content_id
from stages.store.sealed_json import WRONG_SHAPE


def key_of(call: Mapping[str, Any]) -> str:
    """Return the key of a call. Equal requests to one endpoint have the same key, whichever stage sends them."""
    content = {name: call[name] for name in ("endpoint", "request", "draw") if name in call}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def key_in(row: Any) -> str:
    """Return the key of a line. Earlier versions included a call's purpose (`about`) in the key, and so paid for equal
    requests twice. For their lines, the key is computed from the request. Raise TypeError for another line."""
    if set(row) != {"key", "at", "asked", "answer"} or not isinstance(row["answer"], str):
        raise TypeError("not an answer")
    key = key_of(row["asked"]) if "about" in row["asked"] else row["key"]
    if not isinstance(key, str):
        raise TypeError("not a key")
    return key


class Calls(json_log.Appender):
    """The stored answers of one model at an endpoint. Use it inside `opened`."""

    def __init__(self, folder: Path, endpoint: str, model: str):
        super().__init__(folder / f"{content_id(endpoint, model)}.jsonl")
        self.of = f"{model} at {endpoint}"
        # by key, the byte at which the line starts, and its length
        self.places: dict[str, tuple[int, int]] = {}

    @contextmanager
    def opened(self, allowance: Allowance | None = None) -> Iterator[None]:
        """Wait for the lock of the file, hold it, and read the keys in the file. Raise LimitReached if the time of
        `allowance` is up first."""
        lock = self.path.with_suffix(".lock")
        with locks.hold_lock(lock, self.of, "asked", allowance):
            lines = json_log.read(
                self.path, key_in, "If an answer in them is needed, the endpoint is called again."
            )
            # the last line of a key counts
            self.places = {line.value: (line.place, line.length) for line in lines}
            with super().opened():
                yield

    def get(self, key: str) -> str | None:
        """Return the answer with this key, or None if there is none or its line is damaged."""
        if key not in self.places:
            return None
        place, length = self.places[key]
        try:
            return str(json_log.parse(os.pread(self.file, length, place))["answer"])
        except WRONG_SHAPE:
            del self.places[key]
            return None

    def store_answer(self, key: str, call: Mapping[str, Any], answer: str) -> None:
        """Append an answer with its request. It is on the disk when `durable` returns."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = json_log.sealed({"key": key, "at": at, "asked": call, "answer": answer})
        self.places[key] = json_log.append(self.file, line), len(line)
