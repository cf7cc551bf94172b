"""Benchmarks of a chain in a store: `python -m tests.bench.NAME [OUTPUTS] [KEY=VALUE …]`."""

import gzip
import logging
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from stages.cli import compose
from stages.config.schema import Config
from stages.evaluation.intervals import Interval
from stages.hardware import process
from stages.store.node import Node
from stages.store.store import Store
from tests.helpers import ROOT, composed


def run(main: Callable[[Path, list[str]], None]) -> None:
    """Call it with the store, `outputs` where none is named, and the overrides that the command line gives."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    words = sys.argv[1:]
    folder = words.pop(0) if words and "=" not in words[0] else "outputs"
    main(ROOT / folder, words)


def prepared(outputs: Path, overrides: list[str]) -> tuple[Config, Store, dict[str, Node]]:
    """Return the settings, store and graph of a command with these overrides."""
    cfg = composed(*overrides)
    cfg.outputs = str(outputs)
    return compose.prepare(cfg)


def first_rows(file: Path, count: int, folder: Path) -> Path:
    """A copy of the first lines of a compressed file, in this folder."""
    cut = folder / f"{file.stem.removesuffix('.jsonl')}_{count}.jsonl"
    cut.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "rb") as lines:
        cut.write_bytes(b"".join(islice(lines, count)))
    return cut


def tell(results: dict[str, Any]) -> None:
    """List pass rates and differences by group, and how answers end, from an evaluation's `results.json`."""
    titles = results["models"]
    for group, rates in results["groups"].items():
        rates_message = ", ".join(
            f"{title} {100 * rates[role]['mean']:.1f}%" for role, title in titles.items()
        )
        logging.info("%s (%d): %s", group, rates["prompts"], rates_message)
        for name, title in results["differences"].items():
            logging.info("    %s %s", title, Interval(**rates[name]).points())
    for role, title in titles.items():
        ended, tokens = results["stop_rate"][role], results["mean_tokens"][role]
        logging.info("%s: %.1f%% end, %.1f tokens", title, 100 * ended, tokens)
