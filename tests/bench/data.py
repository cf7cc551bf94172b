"""Measure the cost of reading and joining many rows: `python -m tests.bench.data [ROWS] [jsonl|json]`.

Alpaca's 8,000 rows, repeated under other first words until there are ROWS (a million), as JSON lines or as one JSON
array, through `source` and then `data` as data=file has them, each in a process of its own. CPU-seconds without what
Python takes to start and import, seconds on the clock, and the largest memory. Needs the shared data beside the
checkout, and 1.2 GB of disk for a while.
"""

import gzip
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from stages import data, source
from tests.helpers import DATA, settings
from tests.rows import work
from tests.stages.reading import wired


class Cost(NamedTuple):
    processor: float  # seconds
    seconds: float
    memory: int  # MiB
    summary: str


def rows(count: int) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / "sft" / "alpaca_8k.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for i in range(count):
        repetition, row = divmod(i, len(rows))
        yield {**rows[row], "instruction": f"Request {repetition}: {rows[row]['instruction']}"}


def write(file: Path, count: int) -> None:
    array = file.suffix == ".json"
    with open(file, "w", encoding="utf-8") as lines:
        for i, row in enumerate(rows(count)):
            lines.write(
                (",\n" if array else "\n") * (i > 0) + "[\n" * (array and not i) + json.dumps(row)
            )
        lines.write("\n]" if array else "")


def cost(stage: str, file: Path) -> Cost:
    """The cost of the stage `source` or `data` for this file."""
    cfg = settings("data=file", f"data.sources=[{{path: {file}}}]").data
    read, joined = wired(cfg, file.parent / "cache")
    out = work(file.parent / stage)
    processor, started = time.process_time(), time.monotonic()
    if stage == "source":
        metrics = source.run(read.config, {}, out)
    else:
        metrics = data.run(joined.config, {"source_1": file.parent / "source"}, out)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return Cost(
        time.process_time() - processor, time.monotonic() - started, memory, metrics["summary"]
    )


def main(count: int, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows.{kind}"
        write(file, count)
        logging.info("%s rows, %.0f MB", f"{count:,}", file.stat().st_size / 1e6)
        for stage in ("source", "data"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                cost_of_stage = alone.submit(cost, stage, file).result()
            line = "%-8s %7.1f CPU-s %7.1f s %6d MiB  %s"
            logging.info(
                line,
                stage,
                cost_of_stage.processor,
                cost_of_stage.seconds,
                cost_of_stage.memory,
                cost_of_stage.summary,
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = sys.argv[1:]
    main(int(words[0]) if words else 1_000_000, words[1] if words[1:] else "jsonl")
