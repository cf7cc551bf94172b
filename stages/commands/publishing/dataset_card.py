"""The card of a published dataset: what is in it, where it comes from, who labelled it, and how far to trust that."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from stages.config.errors import visible
from stages.models.model_card import name_of
from stages.store.manifest import Manifest
from stages.store.numbers import signed
from stages.store.sealed_json import having, load_json

Tables = dict[str, dict[str, pa.Table]]  # by configuration, then by split; none that is empty

TASKS = dict.fromkeys(("preferences", "unpaired"), "reinforcement-learning") | {"demonstrations": "text-generation"}
TRAINERS = {
    "preferences": "TRL's DPOTrainer and RewardTrainer",
    "unpaired": "TRL's KTOTrainer",
    "demonstrations": "TRL's SFTTrainer",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the hub has their names
UNKNOWN = "not stated"
RELIABLE = {
    "accuracy": "labels that agree with what is known",
    "pair_accuracy": "preferences that are the right way round",
    "pair_wrong": "preferences that are the wrong way round",
    "pair_neither": "preferences between two equally good answers",
    "sensitivity": "positives that are found",
    "specificity": "negatives that are found",
    "kappa": "Cohen's κ",
    "alpha": "Krippendorff's α",
}
TEXT = """\
# {title}

{what}

| configuration | for | {splits} |
| --- | --- |{rules}
{configurations}

{left_out}

## Where it comes from

{sources}

Who wrote the completions, and in how many places of these tables they stand: {policies}. {base}

A licence is what the source of a prompt says of itself. Completions that a model wrote may be bound by that model's
terms besides.

## Labels

{labels}

## How it was made

{steps}

## Use

```python
from datasets import load_dataset

{use}
```

What models wrote here can be wrong, biased or unsafe, rejected and undesirable completions on purpose. A label says
what its labeler was asked, and no more.
"""


def card(title: str, tables: Tables, plain: int, made: Sequence[Manifest], judged: Sequence[Path]) -> str:
    """The `README.md` of a dataset. `plain`: rows of plain text that are left out; `made`: the manifests of all that
    it came from, `judged`: the folders of its labels."""
    licences = {name for rows in everything(tables) for name in column(rows, "licence") if name}
    splits = list(dict.fromkeys(split for those in tables.values() for split in those))
    first = next(iter(tables))
    header: dict[str, Any] = {
        "configs": [
            {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}.parquet"} for s in those]}
            | ({"default": True} if name == first else {})
            for name, those in tables.items()
        ],
        "task_categories": sorted({TASKS[name] for name in tables}),
        "size_categories": [size(sum(len(rows) for rows in everything(tables)))],
        "tags": ["plumbline", "trl", *tables],
    }
    if licences:
        header["license"] = sorted({spelled(name) for name in licences})
    text = TEXT.format(
        title=title,
        what=f"Made by Plumbline: {', '.join(tables)}, in TRL's conversational columns.",
        splits=" | ".join(splits),
        rules=" --- |" * len(splits),
        configurations="\n".join(
            f"| `{name}` | {TRAINERS[name]} | {' | '.join(str(len(its.get(s, ()))) for s in splits)} |"
            for name, its in tables.items()
        ),
        left_out="\n".join(f"- {line}" for line in left_out(made, plain)),
        sources=sources(tables),
        policies=policies(tables, {m["fingerprint"]: f"{m['stage']} {m['fingerprint']}" for m in made}),
        base=" ".join(f"Model: {name_of(m['config'])}." for m in made if m["stage"] == "base"),
        labels="\n\n".join(labels(m, folder) for m, folder in zip(labelled(made, judged), judged, strict=True)),
        steps="\n".join(f"1. `{m['stage']} {m['fingerprint']}`: {m['metrics']['summary']}" for m in made),
        use="\n".join(f'{name} = load_dataset("FOLDER", "{name}")  # or where it was pushed to' for name in tables),
    )
    return visible(f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}", "\n\t")


def everything(tables: Tables) -> list[Any]:
    return [rows for those in tables.values() for rows in those.values()]


def column(rows: Any, name: str) -> list[Any]:
    """The values of a column; nothing of one that is not there."""
    return list(rows[name].to_pylist()) if name in rows.column_names else [None] * len(rows)


def size(rows: int) -> str:
    return next((name for most, name in SIZES if rows < most), "n>1M")


def spelled(licence: str) -> str:
    """As the hub's card takes it."""
    name = licence.strip().lower().replace(" ", "-")
    return name if LICENCE.fullmatch(name) else "other"


def sources(tables: Tables) -> str:
    """Rows of every source and licence, by configuration."""
    counts = Counter[tuple[str, str, str]]()
    for name, those in tables.items():
        for rows in those.values():
            said = zip(column(rows, "source"), column(rows, "licence"), strict=True)
            counts.update((source or UNKNOWN, licence or UNKNOWN, name) for source, licence in said)
    lines = [f"| source | licence | {' | '.join(tables)} |", "| --- | --- |" + " --- |" * len(tables)]
    for source, licence in sorted({key[:2] for key in counts}):
        each = " | ".join(str(counts[source, licence, name]) for name in tables)
        lines.append(f"| {cell(source)} | {cell(licence)} | {each} |")
    return "\n".join(lines)


def policies(tables: Tables, nodes: Mapping[str, str]) -> str:
    """Who wrote how many completions: a node by its stage, or the name of a source."""
    counts = Counter[str]()
    for rows in everything(tables):
        for name in ("chosen_policy", "rejected_policy", "policy"):
            counts.update(said for said in column(rows, name) if said)
    told = [f"{nodes.get(name, cell(name))} ({count})" for name, count in counts.most_common()]
    return ", ".join(told) or "nobody says"


def left_out(made: Sequence[Manifest], plain: int) -> list[str]:
    """What was judged or read, and is not here, by reason."""
    found = [f"{plain} demonstrations are plain text, without a prompt, and left out."] if plain else []
    for m in made:
        named = {"pairs": "prompts_without_pair", "unpaired": "left_out"}.get(m["stage"])
        if named and (reasons := m["metrics"][named]):
            told = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
            what = "Prompts without a pair" if m["stage"] == "pairs" else "Completions without a label"
            found.append(f"{what}: {told}.")
    return found or ["Nothing was left out."]


def labelled(made: Sequence[Manifest], judged: Sequence[Path]) -> list[Manifest]:
    by = {m["fingerprint"]: m for m in made if m["stage"] == "label"}
    return [by[folder.name] for folder in judged]


def labels(m: Manifest, folder: Path) -> str:
    """Who labelled, and what an audit found."""
    judges = [str(e["model"]) for e in (m["config"].get("judge") or {}).get("endpoints") or []]
    of = f" ({', '.join(map(cell, judges))})" if judges else ""
    told = f"`label {m['fingerprint']}`, by {m['metrics']['labeler']}{of}: {m['metrics']['summary']}."
    audited = folder / "reliability.json"
    if not audited.exists():
        return f"{told} Nobody has audited these labels."
    found = load_json(audited, having("audited", "known"))
    rows = [
        f"| {title} | {mean} | {low} to {high} |"
        for name, title in RELIABLE.items()
        if (its := found.get(name))
        for mean, low, high in [[signed(its[bound], "{:z.3f}") for bound in ("mean", "low", "high")]]
    ]
    head = f"{told}\n\nOf {found['audited']} judgements, drawn at random, {found['known']} have a label that is known."
    return "\n".join([head, "", "| measure | | 95% interval |", "| --- | --- | --- |", *rows]) if rows else head


def cell(text: str) -> str:
    """Text of others in a table of Markdown, on one line."""
    return " ".join(re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text).split())
