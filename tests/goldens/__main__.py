"""Record what the project computes, or compare it with the record: `python -m tests.goldens record|check [PART …]`.

The parts are `configurations`, `rows`, `refusals` and `chains`; without one, all of them. Each has a file of this folder,
PART.json, with a value for every command. `check` computes the recorded commands again, prints what differs and exits
with 1 if anything does. `record` writes the files anew: a change that moves a value on purpose does so in the same
commit, which says what moved and why. Nothing here names a fingerprint, so a raised version moves nothing.
"""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stages.hardware import process
from tests.goldens import chains, configurations, refusals, rows

PARTS: dict[str, ModuleType] = {
    "configurations": configurations,
    "rows": rows,
    "refusals": refusals,
    "chains": chains,
}
INSTEAD = "Record them here in a checkout of the commit before, and copy its file."
SHOWN = 100  # differences
TOLERANCE = (
    1e-6  # relative; figures of one processor repeat, apart from the order in which threads add
)


def record_file(part: str) -> Path:
    return Path(__file__).with_name(f"{part}.json")


def record(part: str) -> None:
    """Write the values of all commands of a part."""
    values = PARTS[part].measure(PARTS[part].commands())
    record_file(part).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    logging.info("%s: %d commands recorded", part, len(values))


def check(part: str) -> list[str]:
    """Return a line for each value that is not the recorded one."""
    recorded = json.loads(record_file(part).read_text(encoding="utf-8"))
    if not chains.is_of_this_processor(recorded):
        logging.info("%s: recorded on another processor, so not compared. %s", part, INSTEAD)
        return []
    values = PARTS[part].measure(list(recorded))
    comparable = {command: value for command, value in recorded.items() if command in values}
    lines = [*differences(comparable, json.loads(json.dumps(values)), ())]
    counts = part, len(comparable), len(recorded), len(lines)
    logging.info("%s: %d of %d commands compared, %d differences", *counts)
    return lines


def differences(before: Any, now: Any, place: tuple[str, ...]) -> Iterator[str]:
    """List the places in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), (*place, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, (*place, str(i)))
    elif not is_equal(before, now):
        yield f"{' | '.join(place)}: {json.dumps(before)[:200]} → {json.dumps(now)[:200]}"


def is_equal(before: Any, now: Any) -> bool:
    if isinstance(before, float) and isinstance(now, float):
        return abs(before - now) <= TOLERANCE * max(1.0, abs(before))
    return type(before) is type(now) and before == now


def main(action: str, parts: list[str]) -> int:
    """Return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    torch.set_num_threads(1)  # sums of several threads differ by their number
    if action == "record":
        for part in parts:
            record(part)
        return 0
    lines = [f"{part} | {line}" for part in parts for line in check(part)]
    logging.info("%s", "\n".join(lines[:SHOWN]) or "nothing differs")
    return int(bool(lines))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record" | "check" as action, *parts] if {*parts} <= {*PARTS}:
            sys.exit(main(action, parts or [*PARTS]))
    sys.exit(__doc__)
