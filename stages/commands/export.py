"""`stage=export`: write a model, or its training data as a dataset, to files or to the hub.

`datasets.load_dataset` opens the folder of a dataset: TRL's columns in Parquet by configuration and split, and a card.
Every row names its source. Token ids are left out, as they only fit one tokenizer."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from stages.config.choices import ExportFormat, GGUFType
from stages.config.errors import UserError, visible
from stages.config.installation import read_beside
from stages.config.schema import Export
from stages.evaluation.intervals import Interval
from stages.models import hub
from stages.models.base_licence import licence_message, read_licence
from stages.models.model_card import model_name, source_name
from stages.store.manifest import Manifest, manifest_of
from stages.store.node import Node, in_build_order
from stages.store.numbers import signed
from stages.store.records import MESSAGES, content_id
from stages.store.sealed_json import load_json, remove, replace_folder, require_keys
from stages.store.store import Store

log = logging.getLogger(__name__)

Tables = dict[str, dict[str, pa.Table]]  # by configuration, then by split; no table is empty
TEXTS: dict[str, Any] = read_beside(__file__)
EVALUATION, DATASET = TEXTS["evaluation"], TEXTS["dataset"]
ORIGIN = ("source", "task", "licence")  # columns on the origin of a prompt, if its table has them
SPLITS = ("train", "validation")
# The data's splits that SFT reads, with their names in the dataset.
SFT_SPLITS = {"sft": "train", "validation": "validation"}
# Columns by their name here, with their name in the dataset: TRL's trainers would use a column called `margin`.
PREFERENCES = {
    name: name
    for name in [
        "id",
        "prompt_id",
        "prompt",
        "chosen",
        "rejected",
        "labeler",
        "strategy",
        "chosen_policy",
    ]
}
PREFERENCES |= {
    "rejected_policy": "rejected_policy",
    "rejected_finish_reason": "rejected_finish_reason",
}
PREFERENCES |= {"margin": "score_difference"}
UNPAIRED = {
    name: name
    for name in [
        "id",
        "prompt_id",
        "prompt",
        "completion",
        "label",
        "score",
        "labeler",
        "policy",
        "finish_reason",
    ]
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
UNKNOWN = "not stated"
LICENCES = {*TEXTS["licences"].split()}
TASKS, TRAINERS, MEASURES = (TEXTS[name] for name in ("tasks", "trainers", "measures"))


def write(cfg: Export, nodes: list[Node], evaluation: Node | None, store: Store) -> None:
    """Export a model, or a dataset of several nodes. The card of a pushed model has the results of its evaluation."""
    if cfg.format is ExportFormat.dataset:
        return publish_dataset(cfg, nodes, store)
    [node] = nodes
    model = store.folder(node) / "model"
    licence = read_licence(model)
    if message := licence_message(licence):
        log.info("%s", message)
    if cfg.format is ExportFormat.gguf:
        from stages.models import gguf_file  # imported here, as it loads torch, which takes seconds

        dtype = cfg.dtype or GGUFType.f16
        file = store.root / "export" / f"{node.stage}-{node.fingerprint}-{dtype}.gguf"
        with store.lock("export", file.stem):  # a second export waits for the first
            name = model_name(node.stage, node.fingerprint, licence)
            gguf_file.write_gguf(model, file, dtype, name)
        log.info("The file: %s (%.1f MiB)", file, file.stat().st_size / 2**20)
    else:
        card = (model / "README.md").read_text(encoding="utf-8")
        if evaluation and store.find(evaluation):
            store.verify(store.folder(evaluation))
            results = load_json(store.folder(evaluation) / "results.json", require_keys("models"))
            card += evaluation_section(results, evaluation.config.confidence)
        else:
            log.info(
                "The model is not evaluated, so its card has no results. stage=eval adds them."
            )
        log.info(
            "Pushed to %s",
            hub.push_folder(model, str(cfg.repo), cfg.private, f"Plumbline {node}", card),
        )


def evaluation_section(results: dict[str, Any], level: float) -> str:
    """Return the section of a model card with the results of an evaluation. `level`: of its intervals."""
    models, differences = results["models"], results["differences"]
    columns = ["", "prompts", *models.values(), *differences.values()]
    rows = [columns, ["---"] * len(columns)]
    for group, row in results["groups"].items():
        rates = [Interval(**row[role]).share() for role in models]
        rows.append(
            [
                group,
                str(row["prompts"]),
                *rates,
                *(Interval(**row[name]).points() for name in differences),
            ]
        )
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
        log.info(
            "Pushed to %s",
            hub.push_folder(folder, cfg.repo, cfg.private, f"Plumbline {name}", kind="dataset"),
        )


def write_folder(folder: Path, name: str, nodes: Sequence[Node], store: Store) -> None:
    tables_by_name, left_out = collect_tables(nodes, store.folder)
    if not tables_by_name:
        raise UserError(
            "export.format=dataset: this run has no pairs, labels or demonstrations to export."
        )
    draft = folder.with_suffix(".partial")
    remove(draft)
    for configuration, splits in tables_by_name.items():
        (draft / configuration).mkdir(parents=True)
        for split, table in splits.items():
            pq.write_table(table, draft / configuration / f"{split}.parquet")
    manifests = [
        manifest_of(store.folder(n)) for n in in_build_order([*nodes]) if store.folder(n).exists()
    ]
    label_folders = dict.fromkeys(
        store.folder(n.inputs["judged"]) for n in nodes if "judged" in n.inputs
    )
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
            name, columns = (
                ("preferences", PREFERENCES) if node.stage == "pairs" else ("unpaired", UNPAIRED)
            )
            table = pq.read_table(folder(node) / f"{node.stage}.parquet").select(
                [*columns, "split"]
            )
            parts[name].append(
                add_origin(table.rename_columns([*columns.values(), "split"]), prompts)
            )
        else:
            examples = pq.read_table(folder(node) / "examples.parquet")
            is_sft_split = pc.is_in(examples["split"], value_set=pa.array([*SFT_SPLITS]))
            answered = examples.filter(pc.and_(is_sft_split, pc.is_valid(examples["reference"])))
            weights = [not turns or turns[-1] for turns in answered["trained"].to_pylist()]
            # TRL trains on every completion
            trained = answered.filter(pa.array(weights, pa.bool_()))
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
    answers = [
        [{"role": "assistant", "content": text}] for text in examples["reference"].to_pylist()
    ]
    columns = {
        "id": examples["id"],
        "prompt": examples["messages"],
        "completion": pa.array(answers, MESSAGES),
    }
    columns |= {name: examples[name] for name in ORIGIN if name in examples.column_names}
    splits = [SFT_SPLITS[split] for split in examples["split"].to_pylist()]
    return pa.table(columns | {"split": pa.array(splits, pa.string())})


def by_split(table: pa.Table) -> dict[str, pa.Table]:
    parts = {
        split: table.filter(pc.equal(table["split"], split)).drop_columns("split")
        for split in SPLITS
    }
    return {split: part for split, part in parts.items() if len(part)}


def dataset_card(
    title: str, tables: Tables, unused: int, manifests: list[Manifest], label_folders: list[Path]
) -> str:
    """Return the `README.md` of a dataset. `unused`: the number of demonstrations left out; `manifests`: those of all
    nodes that it was made from; `label_folders`: the folders of its labels."""
    licences = {name for rows in all_tables(tables) for name in column(rows, "licence")}
    splits = list(
        dict.fromkeys(split for splits_of_one in tables.values() for split in splits_of_one)
    )
    first, total = next(iter(tables)), sum(len(rows) for rows in all_tables(tables))
    header: dict[str, Any] = {
        "configs": [
            {
                "config_name": name,
                "data_files": [
                    {"split": s, "path": f"{name}/{s}.parquet"} for s in tables_by_split
                ],
            }
            | ({"default": True} if name == first else {})
            for name, tables_by_split in tables.items()
        ],
        "task_categories": sorted({TASKS[name] for name in tables}),
        "size_categories": [next((name for most, name in SIZES if total < most), "n>1M")],
        "tags": ["plumbline", "trl", *tables],
    }
    if any(licences):  # the hub accepts no other words
        names = ((licence or "unknown").strip().lower().replace(" ", "-") for licence in licences)
        header["license"] = sorted({name if name in LICENCES else "other" for name in names})
    labels = {m["fingerprint"]: m for m in manifests if m["stage"] == "label"}
    text = DATASET.format(
        title=title,
        what=f"Made by Plumbline: {', '.join(tables)}, in TRL's conversational columns.",
        splits=" | ".join(splits),
        rules=" --- |" * len(splits),
        configurations="\n".join(
            f"| `{name}` | {TRAINERS[name]} | {' | '.join(str(len(tables_by_split.get(s, ()))) for s in splits)} |"
            for name, tables_by_split in tables.items()
        ),
        left_out="\n".join(f"- {line}" for line in left_out_lines(manifests, unused)),
        sources=sources_section(tables),
        policies=policies_clause(
            tables, {m["fingerprint"]: f"{m['stage']} {m['fingerprint']}" for m in manifests}
        ),
        base=" ".join(
            f"Model: {source_name(m['config'])}." for m in manifests if m["stage"] == "base"
        ),
        labels="\n\n".join(labels_section(labels[folder.name], folder) for folder in label_folders),
        steps="\n".join(
            f"1. `{m['stage']} {m['fingerprint']}`: {m['metrics']['summary']}" for m in manifests
        ),
        use="\n".join(
            f'{name} = load_dataset("FOLDER", "{name}")  # or where it was pushed to'
            for name in tables
        ),
    )
    return visible(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}", "\n\t")


def all_tables(tables: Tables) -> list[Any]:
    return [rows for tables_by_split in tables.values() for rows in tables_by_split.values()]


def column(rows: Any, name: str) -> list[Any]:
    """Return the values of a column, or None for each row if there is no such column."""
    return list(rows[name].to_pylist()) if name in rows.column_names else [None] * len(rows)


def sources_section(tables: Tables) -> str:
    """Return the table of rows by source, licence and configuration."""
    counts = Counter[tuple[str, str, str]]()
    for name, tables_by_split in tables.items():
        for rows in tables_by_split.values():
            origins = zip(column(rows, "source"), column(rows, "licence"), strict=True)
            counts.update(
                (source or UNKNOWN, licence or UNKNOWN, name) for source, licence in origins
            )
    lines = [
        f"| source | licence | {' | '.join(tables)} |",
        "| --- | --- |" + " --- |" * len(tables),
    ]
    for source, licence in sorted({key[:2] for key in counts}):
        cells = " | ".join(str(counts[source, licence, name]) for name in tables)
        lines.append(f"| {escape_cell(source)} | {escape_cell(licence)} | {cells} |")
    return "\n".join(lines)


def policies_clause(tables: Tables, nodes: Mapping[str, str]) -> str:
    """Return the authors of completions with their counts: a node by its stage, or the name of a source."""
    names = ("chosen_policy", "rejected_policy", "policy")
    policies = (
        policy
        for rows in all_tables(tables)
        for name in names
        for policy in column(rows, name)
        if policy
    )
    authors = [
        f"{nodes.get(name, escape_cell(name))} ({count})"
        for name, count in Counter(policies).most_common()
    ]
    return ", ".join(authors) or UNKNOWN


def left_out_lines(manifests: Sequence[Manifest], unused: int) -> list[str]:
    """Return a line for each kind of rows that are left out, with the reasons and counts."""
    lines = (
        [f"{unused} demonstrations are left out: plain text, or an untrained last answer."]
        if unused
        else []
    )
    for m in manifests:
        metric = {"pairs": "prompts_without_pair", "unpaired": "left_out"}.get(m["stage"])
        if metric and (reasons := m["metrics"][metric]):
            counts = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
            subject = (
                "Prompts without a pair" if m["stage"] == "pairs" else "Completions without a label"
            )
            lines.append(f"{subject}: {counts}.")
    return lines or ["Nothing was left out."]


def labels_section(m: Manifest, folder: Path) -> str:
    """Return the section on a labeler and the results of its audit."""
    judges = [str(endpoint["model"]) for endpoint in m["config"].get("endpoints") or []]
    judge_list = f" ({', '.join(map(escape_cell, judges))})" if judges else ""
    labeler = f"`label {m['fingerprint']}`, by {m['metrics']['labeler']}{judge_list}: {m['metrics']['summary']}."
    if not (audited := folder / "reliability.json").exists():
        return f"{labeler} These labels are not audited."
    reliability = load_json(audited, require_keys("audited", "known"))
    rows = [
        f"| {title} | {mean} | {low} to {high} |"
        for name, title in MEASURES.items()
        if (interval := reliability.get(name))
        for mean, low, high in [
            [signed(interval[bound], "{:z.3f}") for bound in ("mean", "low", "high")]
        ]
    ]
    head = f"{labeler}\n\n{reliability['known']} of {reliability['audited']} random judgements have a known label."
    return (
        "\n".join([head, "", "| measure | | 95% interval |", "| --- | --- | --- |", *rows])
        if rows
        else head
    )


def escape_cell(text: str) -> str:
    """Return text from outside with Markdown escaped, on one line for a table cell."""
    return " ".join(re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text).split())
