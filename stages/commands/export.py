"""`stage=export`: write a model, or its training data as a dataset, to files or to the hub.

`datasets.load_dataset` opens the folder of a dataset: TRL's columns in Parquet by configuration and split, and a card.
Every row names its source. Token ids are left out, as they only fit one tokenizer."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.commands.dataset_card import Tables, dataset_card
from stages.config.choices import ExportFormat
from stages.config.errors import UserError, visible
from stages.config.installation import read_beside
from stages.config.schema import Export
from stages.evaluation.intervals import Interval
from stages.models import hub
from stages.store.manifest import manifest_of
from stages.store.node import Node, in_build_order
from stages.store.records import MESSAGES, content_id
from stages.store.sealed_json import load_json, remove, replace_folder, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

EVALUATION: str = read_beside(__file__)["evaluation"]
ORIGIN = ("source", "task", "licence")  # columns on the origin of a prompt, if its table has them
SPLITS = ("train", "validation")
# The data's splits that SFT reads, with their names in the dataset.
SFT_SPLITS = {"sft": "train", "validation": "validation"}
# Columns by their name here, with their name in the dataset: TRL's trainers would use a column called `margin`.
PREFERENCES = {name: name for name in "id prompt_id prompt chosen rejected labeler strategy chosen_policy".split()}
PREFERENCES |= {"rejected_policy": "rejected_policy", "rejected_finish_reason": "rejected_finish_reason"}
PREFERENCES |= {"margin": "score_difference"}
UNPAIRED = {name: name for name in "id prompt_id prompt completion label score labeler policy finish_reason".split()}


def write(cfg: Export, nodes: list[Node], evaluation: Node | None, store: Store) -> None:
    """Export a model, or a dataset of several nodes. The card of a pushed model has the results of its evaluation."""
    if cfg.format is ExportFormat.dataset:
        return publish_dataset(cfg, nodes, store)
    [node] = nodes
    model = store.folder(node) / "model"
    if cfg.format is ExportFormat.gguf:
        from stages.models import gguf_file  # imported here, as it loads torch, which takes seconds

        file = store.root / "export" / f"{node.stage}-{node.fingerprint}-{cfg.dtype}.gguf"
        with store.lock("export", file.stem):  # a second export waits for the first
            gguf_file.write_gguf(model, file, cfg.dtype, f"{node.stage} {node.fingerprint}")
        log.info("The file: %s (%.1f MiB)", file, file.stat().st_size / 2**20)
    else:
        card = (model / "README.md").read_text(encoding="utf-8")
        if evaluation and store.find(evaluation):
            store.verify(store.folder(evaluation))
            results = load_json(store.folder(evaluation) / "results.json", require_keys("models"))
            card += evaluation_section(results, evaluation.config.confidence)
        else:
            log.info("The model is not evaluated, so its card has no results. stage=eval adds them.")
        card = visible(card, "\n\t")  # cards of earlier versions may have invisible characters
        log.info("Pushed to %s", hub.push_folder(model, str(cfg.repo), cfg.private, f"Plumbline {node}", card))


def evaluation_section(results: dict[str, Any], level: float) -> str:
    """Return the section of a model card with the results of an evaluation. `level`: of its intervals."""
    models, differences = results["models"], results["differences"]
    columns = ["", "prompts", *models.values(), *differences.values()]
    rows = [columns, ["---"] * len(columns)]
    for group, row in results["groups"].items():
        rates = [Interval(**row[role]).share() for role in models]
        rows.append([group, str(row["prompts"]), *rates, *(Interval(**row[name]).points() for name in differences)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return EVALUATION.format(verdict=results["verdict"], table=table, level=level)


def publish_dataset(cfg: Export, nodes: Sequence[Node], store: Store) -> None:
    """Write the dataset of these nodes to `outputs/export/`, and push it if `export.repo` is set."""
    name = f"dataset-{content_id([node.fingerprint for node in nodes])[:12]}"
    folder = store.root / "export" / name
    with store.lock("export", name):  # a second export waits for the first
        write_folder(folder, name, nodes, store)
    log.info("The dataset: %s", folder)
    if cfg.repo:
        log.info("Pushed to %s", hub.push_folder(folder, cfg.repo, cfg.private, f"Plumbline {name}", kind="dataset"))


def write_folder(folder: Path, name: str, nodes: Sequence[Node], store: Store) -> None:
    tables_by_name, left_out = collect_tables(nodes, store.folder)
    if not tables_by_name:
        raise UserError("export.format=dataset: this run has no pairs, labels or demonstrations to export.")
    draft = folder.with_suffix(".partial")
    remove(draft)
    for configuration, splits in tables_by_name.items():
        (draft / configuration).mkdir(parents=True)
        for split, table in splits.items():
            pq.write_table(table, draft / configuration / f"{split}.parquet")
    manifests = [manifest_of(store.folder(n)) for n in in_build_order([*nodes]) if store.folder(n).exists()]
    label_folders = dict.fromkeys(store.folder(n.inputs["judged"]) for n in nodes if "judged" in n.inputs)
    text = dataset_card(f"Plumbline {name}", tables_by_name, left_out, manifests, [*label_folders])
    (draft / "README.md").write_text(text, encoding="utf-8")
    replace_folder(draft, folder)


def collect_tables(nodes: Sequence[Node], folder: Callable[[Node], Path]) -> tuple[Tables, int]:
    """Return the tables by configuration and split, and the number of demonstrations that are left out."""
    parts: dict[str, list[pa.Table]] = {"preferences": [], "unpaired": [], "demonstrations": []}
    left_out = 0
    for node in nodes:
        if node.stage in ("pairs", "unpaired"):
            prompts = pq.read_table(folder(node.inputs["judged"]) / "prompts.parquet")
            name, columns = ("preferences", PREFERENCES) if node.stage == "pairs" else ("unpaired", UNPAIRED)
            table = pq.read_table(folder(node) / f"{node.stage}.parquet").select([*columns, "split"])
            parts[name].append(add_origin(table.rename_columns([*columns.values(), "split"]), prompts))
        else:
            examples = pq.read_table(folder(node) / "examples.parquet")
            is_sft_split = pc.is_in(examples["split"], value_set=pa.array([*SFT_SPLITS]))
            answered = examples.filter(pc.and_(is_sft_split, pc.is_valid(examples["reference"])))
            weights = [not turns or turns[-1] for turns in answered["trained"].to_pylist()]
            trained = answered.filter(pa.array(weights, pa.bool_()))  # TRL trains on every completion
            conversations = trained.filter(pc.greater(pc.list_value_length(trained["messages"]), 0))
            left_out += len(answered) - len(conversations)
            parts["demonstrations"].append(demonstrations(conversations))
    whole = {name: pa.concat_tables(tables) for name, tables in parts.items() if tables}
    return {name: by_split(table) for name, table in whole.items() if len(table)}, left_out


def add_origin(table: pa.Table, prompts: pa.Table) -> pa.Table:
    """Return the table with the origin columns of its prompts."""
    rows = pc.index_in(table["prompt_id"], value_set=prompts["id"].combine_chunks())
    for name in ORIGIN:
        if name in prompts.column_names:
            table = table.append_column(name, prompts[name].take(rows))
    return table


def demonstrations(examples: pa.Table) -> pa.Table:
    """Return examples with TRL's columns for SFT, prompt and completion."""
    answers = [[{"role": "assistant", "content": text}] for text in examples["reference"].to_pylist()]
    columns = {"id": examples["id"], "prompt": examples["messages"], "completion": pa.array(answers, MESSAGES)}
    columns |= {name: examples[name] for name in ORIGIN if name in examples.column_names}
    splits = [SFT_SPLITS[split] for split in examples["split"].to_pylist()]
    return pa.table(columns | {"split": pa.array(splits, pa.string())})


def by_split(table: pa.Table) -> dict[str, pa.Table]:
    parts = {split: table.filter(pc.equal(table["split"], split)).drop_columns("split") for split in SPLITS}
    return {split: part for split, part in parts.items() if len(part)}
