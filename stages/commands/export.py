"""`stage=export`: a model, or as a dataset what it learnt from, leaves the store: as files, or to the hub."""

import logging
from typing import Any

from stages.commands.publishing import dataset_folder
from stages.config.choices import ExportFormat
from stages.config.errors import visible
from stages.config.schema import Export
from stages.evaluation.intervals import Interval
from stages.models import gguf_file, hub
from stages.store.node import Node
from stages.store.sealed_json import having, load_json
from stages.store.store import Store

log = logging.getLogger(__name__)

EVALUATION = """
## Evaluation

{verdict}

Share of held-out prompts whose answer passes all checks. Intervals are over other prompts of the same tasks, and for
tasks that nothing was trained on over other tasks like these:

{table}
"""


def write(cfg: Export, nodes: list[Node], evaluation: Node | None, store: Store) -> None:
    """Export a model, or a dataset of several nodes. A pushed model takes along what an evaluation of it found."""
    if cfg.format is ExportFormat.dataset:
        return dataset_folder.publish(cfg, nodes, store)
    [node] = nodes
    model = store.folder(node) / "model"
    if cfg.format is ExportFormat.gguf:
        file = store.root / "export" / f"{node.stage}-{node.fingerprint}-{cfg.dtype}.gguf"
        with store.lock("export", file.stem):  # of two at once the second waits
            gguf_file.write(model, file, cfg.dtype, f"{node.stage} {node.fingerprint}")
        log.info("The file: %s (%.1f MiB)", file, file.stat().st_size / 2**20)
    else:
        card = (model / "README.md").read_text(encoding="utf-8")
        if evaluation and store.find(evaluation):
            store.verify(store.folder(evaluation))
            card += evaluated(load_json(store.folder(evaluation) / "results.json", having("models")))
        else:
            log.info("The model is not evaluated, so the card has no results: stage=eval makes them.")
        card = visible(card, "\n\t")  # those of earlier versions too
        log.info("Pushed to %s", hub.push(model, str(cfg.repo), cfg.private, f"Plumbline {node}", card))


def evaluated(results: dict[str, Any]) -> str:
    """The part of a card that only an evaluation can write."""
    models, differences = results["models"], results["differences"]
    columns = ["", "prompts", *models.values(), *differences.values()]
    rows = [columns, ["---"] * len(columns)]
    for group, row in results["groups"].items():
        rates = [rate(Interval(**row[role])) for role in models]
        rows.append([group, str(row["prompts"]), *rates, *(Interval(**row[name]).points() for name in differences)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return EVALUATION.format(verdict=results["verdict"], table=table)


def rate(share: Interval) -> str:
    return f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"
