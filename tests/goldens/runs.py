"""Run commands in this process, and digest what their nodes hold."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from stages.cli import main
from stages.pipeline.graph import wire_graph
from stages.store.node import Node
from tests.goldens.names import refused_key, without_places
from tests.helpers import as_typed, composed

# Seconds, speeds and memory
UNSTABLE = re.compile(r"runtime|second|_per_|memory|wall|speed|mfu|at$")


def run(root: Path, line: list[str]) -> dict[str, Node] | dict[str, str]:
    """Build a line's target into a store. Return its nodes by name, or `{"refused": KEY}`."""
    try:
        cfg = composed(*line)
        cfg.outputs = str(root)
        with as_typed(*line), without_log():
            main.run(cfg)
    except Exception as error:
        return {"refused": refused_key(error)}
    settings = replace(OmegaConf.to_object(cfg), outputs=str(root))
    return wire_graph(settings, root / "cache" / "digests.json")


@contextmanager
def without_log() -> Iterator[None]:
    """Log errors alone."""
    log = logging.getLogger("stages")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def digest_table(file: Path) -> dict[str, Any]:
    """Return the number of a table's rows, and a digest of their values."""
    table = pq.read_table(file).to_pylist()
    return {"rows": len(table), "digest": digest_of(table)}


def digest_tensors(file: Path) -> str:
    """Return the digest of the tensors of a file, by name."""
    digest = hashlib.sha256()
    with safe_open(file, "pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name).contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_of(value: Any) -> str:
    text = without_places(json.dumps(value, sort_keys=True, default=str, ensure_ascii=False))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without_unstable(value: Any) -> Any:
    """Return a JSON value without what differs from run to run, and without sentences."""
    if isinstance(value, dict):
        stable = {key: each for key, each in value.items() if not UNSTABLE.search(str(key))}
        return {key: without_unstable(each) for key, each in stable.items()}
    if isinstance(value, str) and " " in value:
        return "a sentence"
    if isinstance(value, list):
        return [without_unstable(each) for each in value]
    return value


def describe(folder: Path) -> dict[str, Any]:
    """Return what a node made: digests of its tables and tensors, its curves and its metrics."""
    description: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".parquet":
            description[name] = digest_table(file)
        elif file.suffix == ".safetensors":
            description[name] = digest_tensors(file)
        elif file.name == "curves.jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            description[name] = [without_unstable(json.loads(line)) for line in lines]
        elif file.suffix == ".jsonl":
            description[name] = {"rows": len(file.read_text(encoding="utf-8").splitlines())}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    description["metrics"] = without_unstable(manifest["metrics"])
    return description
