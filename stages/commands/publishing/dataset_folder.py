"""A folder that `datasets.load_dataset` opens: Parquet by configuration and split, and a card."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from stages.commands.publishing.dataset_card import card
from stages.commands.publishing.dataset_tables import tables
from stages.config.schema import Export
from stages.models import hub
from stages.store.manifest import manifest_of
from stages.store.node import Node, in_order
from stages.store.records import content_id
from stages.store.sealed_json import remove, swap
from stages.store.store import Store

log = logging.getLogger(__name__)


def publish(cfg: Export, wanted: Sequence[Node], store: Store) -> None:
    """Write the dataset of these nodes to `outputs/export/`, and push it where `export.repo` says so."""
    name = f"dataset-{content_id([node.fingerprint for node in wanted])[:12]}"
    folder = store.root / "export" / name
    with store.lock("export", name):  # of two at once the second waits
        write(folder, name, wanted, store)
    log.info("The dataset: %s", folder)
    if cfg.repo:
        log.info("Pushed to %s", hub.push(folder, cfg.repo, cfg.private, f"Plumbline {name}", kind="dataset"))


def write(folder: Path, name: str, wanted: Sequence[Node], store: Store) -> None:
    found, plain = tables(wanted, store.folder)
    draft = folder.with_suffix(".partial")
    remove(draft)
    for configuration, splits in found.items():
        (draft / configuration).mkdir(parents=True)
        for split, table in splits.items():
            pq.write_table(table, draft / configuration / f"{split}.parquet")
    made = [manifest_of(store.folder(n)) for n in in_order([*wanted]) if store.folder(n).exists()]
    judged = dict.fromkeys(store.folder(n.inputs["judged"]) for n in wanted if "judged" in n.inputs)
    (draft / "README.md").write_text(card(f"Plumbline {name}", found, plain, made, [*judged]), encoding="utf-8")
    swap(draft, folder)
