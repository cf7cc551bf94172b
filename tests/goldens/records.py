"""The records of this folder: PART.json holds a value for every command of a part, to compare with today's values."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).parent
ABSENT = "absent"  # in place of the value of a key that is not there
# Figures of one processor repeat, apart from the order in which threads add
TOLERANCE = 1e-6  # relative


@dataclass
class Comparison:
    """How many commands were computed again, the places that differ, and why commands were left out."""

    compared: int = 0
    differences: list[str] = field(default_factory=list)
    left_out: str = ""


class Part(Protocol):
    """A part of the goldens. Its name is the name of its record."""

    name: str

    def record(self) -> None:
        """Write the record anew."""

    def check(self) -> Comparison:
        """Compute the recorded commands again, and compare."""


def always(command: str) -> bool:
    return True


@dataclass
class Commands:
    """A part whose commands are listed by `commands` and computed by `measure`. `is_possible` tells if this machine can
    compute a command: the shared data may be missing."""

    name: str
    commands: Callable[[], list[str]]
    measure: Callable[[list[str]], dict[str, Any]]
    is_possible: Callable[[str], bool] = always

    def recorded(self) -> dict[str, Any]:
        """Return the recorded values by command."""
        return read_record(self.name)

    def record(self) -> None:
        """Write the values of all commands. A value that does not differ from the recorded one stays as it is, to the
        last digit, and so does one that this machine cannot compute."""
        values = as_json(self.measure(self.commands()))
        for command, recorded in self.recorded().items():
            stays = not self.is_possible(command)
            if command in values:
                stays = not any(differences(recorded, values[command], ()))
            if stays:
                values[command] = recorded
        write_record(self.name, values)
        logging.info("%s: %d commands recorded", self.name, len(values))

    def check(self) -> Comparison:
        """Compute the recorded commands again. A command that is not recorded differs, and so does a recorded one that
        is gone."""
        recorded = self.recorded()
        possible = [command for command in recorded if self.is_possible(command)]
        present = self.commands()
        compared = [command for command in possible if command in present]
        values = as_json(self.measure(compared)) if compared else {}
        lines = [gone_line(command) for command in possible if command not in present]
        lines += [new_line(command) for command in present if command not in recorded]
        for command in compared:
            lines += differences(recorded[command], values[command], (command,))
        left_out = ""
        if len(possible) < len(recorded):
            left_out = f"{len(recorded) - len(possible)} commands are not possible on this machine"
        return Comparison(len(compared), lines, left_out)


def gone_line(command: str) -> str:
    return f"{command}: recorded, but no longer among the commands"


def new_line(command: str) -> str:
    return f"{command}: not recorded"


def record_file(part: str) -> Path:
    return FOLDER / f"{part}.json"


def read_record(part: str) -> dict[str, Any]:
    """Return the recorded values by command; none of a file that is empty or missing."""
    file = record_file(part)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return json.loads(text or "{}")


def write_record(part: str, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False)
    record_file(part).write_text(text + "\n", encoding="utf-8")


def as_json(value: Any) -> Any:
    """Return a value as it is read from a record."""
    return json.loads(json.dumps(value))


def differences(before: Any, now: Any, place: tuple[str, ...]) -> Iterator[str]:
    """List the places in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            pair = before.get(key, ABSENT), now.get(key, ABSENT)
            yield from differences(*pair, (*place, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, (*place, str(i)))
    elif not is_equal(before, now):
        yield f"{' | '.join(place)}: {json.dumps(before)[:200]} → {json.dumps(now)[:200]}"


def is_equal(before: Any, now: Any) -> bool:
    if isinstance(before, float) and isinstance(now, float):
        return abs(before - now) <= TOLERANCE * max(1.0, abs(before))
    return type(before) is type(now) and before == now


def changes(values: dict[str, str], default: dict[str, str]) -> dict[str, str]:
    """Return the values that are not the default's, and ABSENT for a key that the default alone has."""
    return {
        key: values.get(key, ABSENT)
        for key in sorted(values.keys() | default.keys())
        if values.get(key) != default.get(key)
    }
