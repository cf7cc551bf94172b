"""Sample answers during training: a model answers the same few prompts at every evaluation (`samples.jsonl`)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.store.records import Message
from stages.store.sealed_json import WRONG_SHAPE
from stages.store.workspace import SAMPLES


@dataclass
class Sample:
    """The greedy answer to a prompt (`id`: its hash) after `step` steps. `finish_reason` is stop or length."""

    step: int
    id: str
    prompt: list[Message]
    answer: str
    finish_reason: str


def append_samples(node: Path, samples: Sequence[Sample]) -> None:
    """Append the answers of one evaluation. After a resume, a step can appear twice."""
    lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
    with open(node / SAMPLES, "a", encoding="utf-8") as file:
        file.write(lines)


def read_samples(node: Path) -> list[Sample]:
    """Return the answers sorted by step, then by prompt. If a resume repeated a step, the later answers count."""
    path, samples = node / SAMPLES, dict[tuple[int, str], Sample]()
    for line in path.read_bytes().splitlines() if path.exists() else []:
        if sample := read_sample(line):
            samples[sample.step, sample.id] = sample
    return [samples[key] for key in sorted(samples)]


def read_sample(line: bytes) -> Sample | None:
    """Return the sample in a line of `samples.jsonl`, or None if a kill truncated the line or it is not a sample."""
    try:
        return Sample(**json.loads(line))
    except WRONG_SHAPE:
        return None
