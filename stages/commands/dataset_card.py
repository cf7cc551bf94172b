"""Write the card of a published dataset: its content, its sources, its labelers, and how reliable the labels are."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from stages.config.errors import visible
from stages.config.installation import read_beside
from stages.models.model_card import source_name
from stages.store.manifest import Manifest
from stages.store.numbers import signed
from stages.store.sealed_json import load_json, require_keys

Tables = dict[str, dict[str, pa.Table]]  # by configuration, then by split; no table is empty

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
UNKNOWN = "not stated"
CARD: dict[str, Any] = read_beside(__file__)
LICENCES = {*CARD["licences"].split()}
TASKS, TRAINERS, MEASURES, TEXT = (CARD[name] for name in ("tasks", "trainers", "measures", "text"))


def dataset_card(title: str, tables: Tables, unused: int, manifests: list[Manifest], label_folders: list[Path]) -> str:
    """Return the `README.md` of a dataset. `unused`: the number of demonstrations left out; `manifests`: those of all
    nodes that it was made from; `label_folders`: the folders of its labels."""
    licences = {name for rows in all_tables(tables) for name in column(rows, "licence")}
    splits = list(dict.fromkeys(split for splits_of_one in tables.values() for split in splits_of_one))
    first, total = next(iter(tables)), sum(len(rows) for rows in all_tables(tables))
    header: dict[str, Any] = {
        "configs": [
            {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}.parquet"} for s in tables_by_split]}
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
    text = TEXT.format(
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
        policies=policies_clause(tables, {m["fingerprint"]: f"{m['stage']} {m['fingerprint']}" for m in manifests}),
        base=" ".join(f"Model: {source_name(m['config'])}." for m in manifests if m["stage"] == "base"),
        labels="\n\n".join(labels_section(labels[folder.name], folder) for folder in label_folders),
        steps="\n".join(f"1. `{m['stage']} {m['fingerprint']}`: {m['metrics']['summary']}" for m in manifests),
        use="\n".join(f'{name} = load_dataset("FOLDER", "{name}")  # or where it was pushed to' for name in tables),
    )
    return visible(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}", "\n\t")


def all_tables(tables: Tables) -> list[Any]:
    return [rows for by_split in tables.values() for rows in by_split.values()]


def column(rows: Any, name: str) -> list[Any]:
    """Return the values of a column, or None for each row if there is no such column."""
    return list(rows[name].to_pylist()) if name in rows.column_names else [None] * len(rows)


def sources_section(tables: Tables) -> str:
    """Return the table of rows by source, licence and configuration."""
    counts = Counter[tuple[str, str, str]]()
    for name, by_split in tables.items():
        for rows in by_split.values():
            origins = zip(column(rows, "source"), column(rows, "licence"), strict=True)
            counts.update((source or UNKNOWN, licence or UNKNOWN, name) for source, licence in origins)
    lines = [f"| source | licence | {' | '.join(tables)} |", "| --- | --- |" + " --- |" * len(tables)]
    for source, licence in sorted({key[:2] for key in counts}):
        cells = " | ".join(str(counts[source, licence, name]) for name in tables)
        lines.append(f"| {escape_cell(source)} | {escape_cell(licence)} | {cells} |")
    return "\n".join(lines)


def policies_clause(tables: Tables, nodes: Mapping[str, str]) -> str:
    """Return the authors of completions with their counts: a node by its stage, or the name of a source."""
    names = ("chosen_policy", "rejected_policy", "policy")
    policies = (policy for rows in all_tables(tables) for name in names for policy in column(rows, name) if policy)
    authors = [f"{nodes.get(name, escape_cell(name))} ({count})" for name, count in Counter(policies).most_common()]
    return ", ".join(authors) or "not stated"


def left_out_lines(manifests: Sequence[Manifest], unused: int) -> list[str]:
    """Return a line for each kind of rows that are left out, with the reasons and counts."""
    lines = [f"{unused} demonstrations are left out: plain text, or an untrained last answer."] if unused else []
    for m in manifests:
        metric = {"pairs": "prompts_without_pair", "unpaired": "left_out"}.get(m["stage"])
        if metric and (reasons := m["metrics"][metric]):
            counts = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
            subject = "Prompts without a pair" if m["stage"] == "pairs" else "Completions without a label"
            lines.append(f"{subject}: {counts}.")
    return lines or ["Nothing was left out."]


def labels_section(m: Manifest, folder: Path) -> str:
    """Return the section on a labeler and the results of its audit."""
    judges = [str(e["model"]) for e in (m["config"].get("judge") or {}).get("endpoints") or []]
    judge_list = f" ({', '.join(map(escape_cell, judges))})" if judges else ""
    labeler = f"`label {m['fingerprint']}`, by {m['metrics']['labeler']}{judge_list}: {m['metrics']['summary']}."
    if not (audited := folder / "reliability.json").exists():
        return f"{labeler} These labels are not audited."
    reliability = load_json(audited, require_keys("audited", "known"))
    rows = [
        f"| {title} | {mean} | {low} to {high} |"
        for name, title in MEASURES.items()
        if (interval := reliability.get(name))
        for mean, low, high in [[signed(interval[bound], "{:z.3f}") for bound in ("mean", "low", "high")]]
    ]
    head = f"{labeler}\n\n{reliability['known']} of {reliability['audited']} random judgements have a known label."
    return "\n".join([head, "", "| measure | | 95% interval |", "| --- | --- | --- |", *rows]) if rows else head


def escape_cell(text: str) -> str:
    """Return text from outside with Markdown escaped, on one line for a table cell."""
    return " ".join(re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text).split())
