"""The record of `gpu_chain`: a JSON file with the figures of every cell, or the reason why it is empty.

    version      of this format
    commit       of the checkout; null outside a repository
    machine      GPU, driver and power limit, or the CPU; versions of torch, transformers, TRL and what is compared
    precision    bf16 or fp32
    peak         operations per second, and where that number is from
    shapes       N and the adapter of each shape
    cells        shape, stage, variant, and either `empty`, or `rounds`, `seconds` (the median), `spread` (largest less
                 smallest, over the median), `tokens`, `tokens_per_second`, `mfu`, `attention`, `gib` and `planned_gib`

`variant` is `stage` for a whole node as run.py builds it, with loading and publishing, and else a way to do its work
alone. A cell without tokens has no rate.
"""

import json
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.config.installation import version
from tests.bench import mfu
from tests.bench.mfu import Widths
from tests.helpers import ROOT

VERSION = 2
LIBRARIES = ("torch", "transformers", "trl", "liger-kernel", "vllm")
NOT_MEASURED = "not measured yet"


@dataclass
class Cell:
    """`rounds`: of each round seconds, tokens, bytes, the mean length of a sequence in tokens (0: not counted), and in
    training the last step's loss, which in DPO must be equal in all ways."""

    shape: str
    stage: str
    variant: str
    empty: str = NOT_MEASURED
    rounds: list[dict[str, float]] = field(default_factory=list)
    seconds: float | None = None
    spread: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    attention: float | None = None
    gib: float | None = None
    planned_gib: float | None = None

    @property
    def name(self) -> str:
        return f"{self.shape}/{self.stage}/{self.variant}"

    def add(self, measured: dict[str, float], widths: Widths, passes: int, peak: float) -> None:
        """Add a round, and compute the figures of all rounds."""
        self.empty = ""
        self.rounds.append(measured)
        seconds = [each["seconds"] for each in self.rounds]
        self.seconds = statistics.median(seconds)
        self.spread = (max(seconds) - min(seconds)) / self.seconds if len(seconds) > 1 else None
        self.gib = max(each["bytes"] for each in self.rounds) / 2**30 or None
        if "planned" in measured:
            self.planned_gib = measured["planned"] / 2**30
        if tokens := int(measured["tokens"]):
            self.tokens, self.tokens_per_second = tokens, tokens / self.seconds
            self.mfu = mfu.operations(widths, self.tokens_per_second, passes) / peak
            self.attention = (
                mfu.attention_share(widths, measured["length"]) if measured["length"] else None
            )


@dataclass
class Record:
    machine: dict[str, Any]
    precision: str
    peak: dict[str, Any]
    shapes: dict[str, Any]
    cells: list[Cell]
    commit: str | None = None
    version: int = VERSION

    @classmethod
    def read(cls, file: Path) -> "Record":
        """Raise ValueError if the file is of another version of the format."""
        content = json.loads(file.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"{file}: a record of version {content['version']}, not {VERSION}")
        return cls(**content | {"cells": [Cell(**cell) for cell in content["cells"]]})

    def write(self, file: Path) -> None:
        """Replace the file at once, so that a command that is killed leaves a whole record."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1))
        part.rename(file)

    def continue_from(self, earlier: "Record") -> None:
        """Take over the cells of a record that an earlier command began.

        Raises:
            ValueError: if that record is of another commit, machine or precision.
        """
        for name in ("commit", "machine", "precision"):
            if (before := getattr(earlier, name)) != (now := getattr(self, name)):
                raise ValueError(
                    f"the record is of {name} {before}, and this is {now}: name another file by out="
                )
        self.peak, self.shapes = earlier.peak, earlier.shapes | self.shapes
        self.cells = [*{cell.name: cell for cell in (*self.cells, *earlier.cells)}.values()]


def commit() -> str | None:
    """Return the checkout's commit, with `+` if files have changed since."""
    head = git("rev-parse", "HEAD").strip()
    status = git("status", "--porcelain")
    return (head + "+" if status else head) or None


def git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout


def describe_machine(device: str, processor: str) -> dict[str, Any]:
    """Return the processor, its driver and power limit in watts if it is an NVIDIA GPU, and versions of libraries."""
    machine: dict[str, Any] = {"device": device, "processor": processor}
    if device == "cuda":
        query = "--query-gpu=driver_version,power.limit"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        machine["driver"], machine["power_limit"] = ran.stdout.splitlines()[0].split(", ")
    return machine | {name: version(name) for name in LIBRARIES}
