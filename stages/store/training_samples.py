"""What a model answered while it was trained: the same few prompts at every evaluation, in `samples.jsonl`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.store.records import Message
from stages.store.sealed_json import WRONG_SHAPE
from stages.store.workspace import SAMPLES


@dataclass
class Sample:
    """The greedy answer to one prompt after `step` steps. `id` names the prompt by its content; `finish_reason` is
    stop or length, as of a candidate."""

    step: int
    id: str
    prompt: list[Message]
    answer: str
    finish_reason: str


def append_samples(node: Path, samples: Sequence[Sample]) -> None:
    """Add the answers of one evaluation. After a resume a step may come again."""
    lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
    with open(node / SAMPLES, "a", encoding="utf-8") as file:
        file.write(lines)


def read_samples(node: Path) -> list[Sample]:
    """The answers by step, then by prompt; none where nothing was sampled. Where a resume answered a step again, the
    later answers count."""
    path, samples = node / SAMPLES, dict[tuple[int, str], Sample]()
    for line in path.read_bytes().splitlines() if path.exists() else []:
        if sample := read_sample(line):
            samples[sample.step, sample.id] = sample
    return [samples[key] for key in sorted(samples)]


def read_sample(line: bytes) -> Sample | None:
    """A line of `samples.jsonl`; None for one that a kill cut off, or that is no sample."""
    try:
        return Sample(**json.loads(line))
    except WRONG_SHAPE:
        return None
