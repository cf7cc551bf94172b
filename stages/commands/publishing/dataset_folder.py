"""A dataset's folder, which `datasets.load_dataset` opens: TRL's columns in Parquet, by configuration and split, and a
card. Every row says where it comes from. Token ids are left out: they are one tokenizer's."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.commands.publishing.dataset_card import Tables, card
from stages.config.schema import Export
from stages.models import hub
from stages.store.manifest import manifest_of
from stages.store.node import Node, in_order
from stages.store.records import MESSAGES, content_id
from stages.store.sealed_json import remove, swap
from stages.store.store import Store

log = logging.getLogger(__name__)

ORIGIN = ("source", "task", "licence")  # of a prompt, as far as its table says it
SPLITS = ("train", "validation")
OF_SFT = {"sft": "train", "validation": "validation"}  # splits of the data that SFT reads, and what they are called
# By their names here. Trainers of TRL's take any column called `margin`, so that one has another name.
PREFERENCES = {name: name for name in "id prompt_id prompt chosen rejected labeler strategy chosen_policy".split()}
PREFERENCES |= {"rejected_policy": "rejected_policy", "rejected_finish_reason": "rejected_finish_reason"}
PREFERENCES |= {"margin": "score_difference"}
UNPAIRED = {name: name for name in "id prompt_id prompt completion label score labeler policy finish_reason".split()}


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


def tables(wanted: Sequence[Node], folder: Callable[[Node], Path]) -> tuple[Tables, int]:
    """The tables of nodes that pairs, labels of single completions or examples came from, those of several rounds one
    after the other; and how many demonstrations are plain text, which has no prompt, and left out."""
    found: dict[str, list[pa.Table]] = {"preferences": [], "unpaired": [], "demonstrations": []}
    plain = 0
    for node in wanted:
        if node.stage in ("pairs", "unpaired"):
            prompts = pq.read_table(folder(node.inputs["judged"]) / "prompts.parquet")
            name, columns = ("preferences", PREFERENCES) if node.stage == "pairs" else ("unpaired", UNPAIRED)
            table = pq.read_table(folder(node) / f"{node.stage}.parquet")
            found[name].append(with_origin(renamed(table, columns | {"split": "split"}), prompts))
        else:
            examples = pq.read_table(folder(node) / "examples.parquet")
            read = pc.is_in(examples["split"], value_set=pa.array([*OF_SFT]))
            told = examples.filter(pc.and_(read, pc.is_valid(examples["reference"])))
            conversations = told.filter(pc.greater(pc.list_value_length(told["messages"]), 0))
            plain += len(told) - len(conversations)
            found["demonstrations"].append(demonstrations(conversations))
    whole = {name: pa.concat_tables(those) for name, those in found.items() if those}
    return {name: by_split(table) for name, table in whole.items() if len(table)}, plain


def renamed(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    return table.select([*columns]).rename_columns([*columns.values()])


def with_origin(table: pa.Table, prompts: pa.Table) -> pa.Table:
    """The table with what is known of where its prompts come from."""
    place = pc.index_in(table["prompt_id"], value_set=prompts["id"].combine_chunks())
    for name in ORIGIN:
        if name in prompts.column_names:
            table = table.append_column(name, prompts[name].take(place))
    return table


def demonstrations(examples: pa.Table) -> pa.Table:
    """Prompt and completion, TRL's columns for SFT."""
    answers = [[{"role": "assistant", "content": text}] for text in examples["reference"].to_pylist()]
    columns = {"id": examples["id"], "prompt": examples["messages"], "completion": pa.array(answers, MESSAGES)}
    columns |= {name: examples[name] for name in ORIGIN if name in examples.column_names}
    splits = [OF_SFT[split] for split in examples["split"].to_pylist()]
    return pa.table(columns | {"split": pa.array(splits, pa.string())})


def by_split(table: pa.Table) -> dict[str, pa.Table]:
    parts = {split: table.filter(pc.equal(table["split"], split)).drop_columns("split") for split in SPLITS}
    return {split: part for split, part in parts.items() if len(part)}
