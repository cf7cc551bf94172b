"""A record of where the host waits for the device, by place in the source."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from tests.pretend.device import LISTENER, ROOT, library

RECORD = Path(__file__).with_suffix(".json")
LIBRARIES = ("trl", "transformers", "accelerate", "peft")
INDEX = "index on the CPU"  # no wait, but a hidden copy to the device
Waits = Counter[tuple[str, str]]


@contextlib.contextmanager
def recorded_waits() -> Iterator[Waits]:
    """Count in this block what makes a GPU's host wait: operators by name, and the place that calls them."""
    counts = Waits()
    listener = LISTENER(lambda name: counts.update([(name.decode(), place(sys._getframe(1)))]))
    library().pretend_set_listener(listener)
    try:
        yield counts
    finally:
        library().pretend_set_listener(None)


def place(frame: FrameType | None) -> str:
    """Return the innermost place in stages/ or in a library that uses torch, as `stages/objectives/dpo.py:99`."""
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "stages"):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        for name in LIBRARIES:
            if name in path.parts and "site-packages" in path.parts:
                return f"{'/'.join(path.parts[path.parts.index('site-packages') + 1 :])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def read_record() -> dict[str, dict[str, int]]:
    """Return the most waits of each flow, by who causes them."""
    return json.loads(RECORD.read_text())
