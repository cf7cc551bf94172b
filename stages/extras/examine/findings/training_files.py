"""What lies beside a model that was trained elsewhere: its training log, and an adapter that was merged into it.

Only JSON and safetensors are read: `training_args.bin` is a pickle, which may run code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.models.adapter_folder import ADAPTER_WEIGHTS
from stages.models.loading import weight_files
from stages.store.source_files import ADAPTER_CONFIG, locate

TRAINING_LOG = "trainer_state.json"


def folders_of(place: str, key: str) -> list[Path]:
    """Return the folder of a model on this machine, and the folders in it; [] for a model of the hub or a file."""
    folder = locate(place, key)
    if folder is None or not folder.is_dir():
        return []
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]


def merged_adapter(folders: list[Path]) -> Path | None:
    """Return the folder of an adapter beside merged weights or in their folder; None if there is none."""
    for folder in folders if merged_weights(folders) else folders[1:]:
        if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
            return folder
    return None


def merged_weights(folders: list[Path]) -> Path | None:
    """Return the folder of merged weights that lie beside the adapter itself, as one of an adapter is read as the adapter
    alone; None if none do."""
    if not folders or not (folders[0] / ADAPTER_CONFIG).is_file():
        return None
    others = {file.name for file in weight_files(folders[0])} - {ADAPTER_WEIGHTS}
    return folders[0] if others else None


def largest_rate(folders: list[Path]) -> float | None:
    """Return the largest learning rate in the training logs; None without a log that can be read."""
    rates = list[float]()
    for folder in folders:
        rates += rates_in(folder / TRAINING_LOG)
    return max(rates, default=None)


def rates_in(file: Path) -> Iterator[float]:
    """Yield the learning rates of a training log."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    history = content.get("log_history") if isinstance(content, dict) else None
    for row in history if isinstance(history, list) else []:
        rate = row.get("learning_rate") if isinstance(row, dict) else None
        if isinstance(rate, int | float):
            yield float(rate)
