"""`stage=export`: write a model, or its training data as a dataset, to files or to the hub."""

import logging
from typing import Any

from stages.commands import dataset_folder
from stages.config.choices import ExportFormat
from stages.config.errors import visible
from stages.config.installation import read_beside
from stages.config.schema import Export
from stages.evaluation.intervals import Interval
from stages.models import gguf_file, hub
from stages.store.node import Node
from stages.store.sealed_json import load_json, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

EVALUATION: str = read_beside(__file__)["evaluation"]


def write(cfg: Export, nodes: list[Node], evaluation: Node | None, store: Store) -> None:
    """Export a model, or a dataset of several nodes. The card of a pushed model has the results of its evaluation."""
    if cfg.format is ExportFormat.dataset:
        return dataset_folder.publish(cfg, nodes, store)
    [node] = nodes
    model = store.folder(node) / "model"
    if cfg.format is ExportFormat.gguf:
        file = store.root / "export" / f"{node.stage}-{node.fingerprint}-{cfg.dtype}.gguf"
        with store.lock("export", file.stem):  # a second export waits for the first
            gguf_file.write_gguf(model, file, cfg.dtype, f"{node.stage} {node.fingerprint}")
        log.info("The file: %s (%.1f MiB)", file, file.stat().st_size / 2**20)
    else:
        card = (model / "README.md").read_text(encoding="utf-8")
        if evaluation and store.find(evaluation):
            store.verify(store.folder(evaluation))
            card += evaluation_section(load_json(store.folder(evaluation) / "results.json", require_keys("models")))
        else:
            log.info("The model is not evaluated, so its card has no results. stage=eval adds them.")
        card = visible(card, "\n\t")  # cards of earlier versions may have invisible characters
        log.info("Pushed to %s", hub.push_folder(model, str(cfg.repo), cfg.private, f"Plumbline {node}", card))


def evaluation_section(results: dict[str, Any]) -> str:
    """Return the section of a model card with the results of an evaluation."""
    models, differences = results["models"], results["differences"]
    columns = ["", "prompts", *models.values(), *differences.values()]
    rows = [columns, ["---"] * len(columns)]
    for group, row in results["groups"].items():
        rates = [format_rate(Interval(**row[role])) for role in models]
        rows.append([group, str(row["prompts"]), *rates, *(Interval(**row[name]).points() for name in differences)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return EVALUATION.format(verdict=results["verdict"], table=table)


def format_rate(share: Interval) -> str:
    return f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"
