"""Benchmarks of a chain in a store: `python -m tests.bench.NAME [OUTPUTS] [KEY=VALUE …]`."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from stages.cli import compose
from stages.cli.typed_line import line_of_job
from stages.config.schema import Config
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
    return compose.prepare(cfg, line_of_job().values)
