"""The command line, read once into a value that is handed on: as it is typed, and as one job of a sweep has it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hydra.core.hydra_config import HydraConfig

from stages.hardware import process

MULTIRUN = {"-m", "--multirun"}
SETTING = re.compile(r"\+*([\w./]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class TypedLine:
    """A command line. `arguments`: its words, without `--json`. `values`: the keys and groups that it sets, with their
    values as typed."""

    arguments: tuple[str, ...]
    values: dict[str, str]

    @property
    def is_sweep(self) -> bool:
        return not MULTIRUN.isdisjoint(self.arguments)


@dataclass(frozen=True)
class JobLine:
    """The command line of a run, or of a job of a sweep. `overrides`: what Hydra applies, with what the typed arguments
    imply. `settled`: the keys and groups that these set. `values`: those of them that are typed."""

    typed: TypedLine
    overrides: list[str]
    settled: dict[str, str]
    values: dict[str, str]

    def with_overrides(self, overrides: Sequence[str]) -> "JobLine":
        """Return the line with further overrides behind its own."""
        settled = self.settled | read_values(overrides)
        return replace(self, overrides=[*self.overrides, *overrides], settled=settled)


@lru_cache(maxsize=1)  # of a process, whose jobs all have this line
def read_line(arguments: tuple[str, ...]) -> TypedLine:
    """Return a command line with the values that it sets."""
    return TypedLine(arguments, read_values(arguments))


def line_of_process() -> TypedLine:
    """Return the command line of this process, or of the one that started it for a job of a sweep."""
    return read_line(tuple(process.read_typed_arguments()))


def line_of_job() -> JobLine:
    """Return the command line of this job: outside Hydra, as it is typed."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    return job_line(line_of_process(), overrides)


def job_line(typed: TypedLine, overrides: list[str]) -> JobLine:
    """Return the command line of a job that has these overrides."""
    settled = read_values(overrides)
    values = {key: settled.get(key, value) for key, value in typed.values.items()}
    return JobLine(typed, overrides, settled, values)


def read_values(words: Sequence[str]) -> dict[str, str]:
    """Return the keys and groups that the words of a command line set, with their values as text."""
    values: dict[str, str] = {}
    for word in words:
        match = SETTING.fullmatch(word)
        if match:
            values[match[1]] = match[2]
    return values
