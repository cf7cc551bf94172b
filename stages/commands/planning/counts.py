"""Predict the tokens of a stage from its rows and their text lengths, and the rows of each source of SFT."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.blocks.data import OPEN_GROUPS, SPLIT_OF_GROUP, Amount, Data, plan_amounts
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Reads, Split
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

CHARACTERS = 4.0  # per token
TURNS = 8  # tokens that the chat template adds to a prompt
TEXT = 100.0, 24.0  # mean characters of a generated prompt and its answer, until they are measured
OPEN = 250.0, 400.0  # mean characters of an open request and of a sampled answer
SELECTED = 0.4  # share of open requests with a selected answer to learn from
OF_LABELS = (Reads.pairs, Reads.unpaired)
# Stages whose rows are pairs or single completions
PAIRS = ["reference", *(name for name, objective in OBJECTIVES.items() if objective.reads in OF_LABELS)]
READS_TOKENS = ("sample", "answer", "eval", "reference", *OBJECTIVES)  # and `label=reward_model`


class Sizes(NamedTuple):
    """The rows of a stage (prompts, pairs or candidates; 0 if unknown), and the mean tokens of prompt and answer."""

    rows: float
    prompt: float
    answer: float


def reads_tokens(stage: str, settings: dict[str, Any]) -> bool:
    """Return whether a stage sends tokens through a model."""
    if stage == "label":
        return settings["labeler"] == "reward_model" and "own" not in settings
    return stage in READS_TOKENS and bool(settings.get("train", True)) and not settings.get("file")


def generated_rows(data: Node, selected: bool = False) -> dict[str, float]:
    """Return the expected rows of generated tasks by split. `selected`: the base answers open requests."""
    rows_by_split = dict[str, float]()
    for group, rows in group_rows(data, selected).items():
        rows_by_split[SPLIT_OF_GROUP[group]] = rows_by_split.get(SPLIT_OF_GROUP[group], 0) + rows
    return rows_by_split


def asked_prompts(node: Node, prompts: float) -> float:
    """Return how many of a split's prompts a stage asks: those of one round, up to its limit."""
    limits = [node.settings.get(key) or math.inf for key in ("prompts", "prompts_per_round")]
    return min(prompts / node.settings.get("rounds", 1), *limits)


def group_rows(data: Node, selected: bool) -> dict[str, float]:
    """Return the expected rows of generated tasks by their key in `data.tasks`."""
    tasks = vars(data.config.tasks) if data.config.tasks else {}
    rows = {group: float(tasks.get(group, 0)) for group in SPLIT_OF_GROUP}
    return rows | {"open_sft": SELECTED * rows["open_sft"]} if selected else rows


def generated_lengths(data: Node, split: str, selected: bool = False) -> tuple[float, float]:
    """Return the expected mean characters of a prompt and of an answer of generated tasks."""
    rows = {group: count for group, count in group_rows(data, selected).items() if SPLIT_OF_GROUP[group] == split}
    requests = sum(count for group, count in rows.items() if group in OPEN_GROUPS)
    share = requests / max(1, sum(rows.values()))
    return tuple(share * a + (1 - share) * b for a, b in zip(OPEN, TEXT, strict=True))  # type: ignore[return-value]


def mean_tokens(manifest: Manifest, folder: Path, table: str) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of an answer in a finished node; `table`: a split, or `pairs`."""
    if not (lengths := read_lengths(manifest, folder).get(table)):
        return to_tokens(*TEXT)
    answered = lengths.get("answered", 1.0)
    return to_tokens(lengths["prompt"], answered * lengths["answer"] + (1 - answered) * OPEN[1])


def pool_lengths(manifest: Manifest, folder: Path) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of a candidate in a finished pool."""
    if not (lengths := read_lengths(manifest, folder).get("pool")):
        return to_tokens(*TEXT)
    return to_tokens(lengths["prompt"], 0)[0], lengths["tokens"]


def read_lengths(manifest: Manifest, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the text lengths in a manifest; for one of an earlier version, measure the tables."""
    return manifest["lengths"] if "lengths" in manifest else measure_lengths(manifest["stage"], folder)


@cache
def measure_lengths(stage: str, folder: Path) -> dict[str, dict[str, Any]]:
    from stages.store.text_lengths import text_lengths  # imported here, as it loads pyarrow and numpy

    return text_lengths(stage, folder)


def pool_sources(pool: Node) -> list[Node]:
    """Return the `sample` nodes of a pool; a pool with one source is that node itself."""
    return [pool] if pool.stage == "sample" else [node for role, node in pool.inputs.items() if role != "policy"]


def candidates_per_prompt(sample: Node) -> float:
    """Return the candidates per prompt, or nan for a file, which may have any number."""
    return math.nan if isinstance(sample.config, CandidateFile) else float(sample.config.candidates_per_prompt)


def to_tokens(prompt: float, answer: float) -> tuple[float, float]:
    return prompt / CHARACTERS + TURNS, answer / CHARACTERS + 1


def stage_tokens(stage: str, settings: dict[str, Any], sizes: Sizes, from_base: bool) -> float:
    """Return the tokens that a stage generates or reads, from the lengths of its texts."""
    if stage == "eval":
        return float(settings["likelihood_prompts"] * len(settings["models"]) * (sizes.prompt + sizes.answer))
    answer = sizes.answer
    if limit := settings.get("max_new_tokens"):
        answer = limit if from_base else min(limit, answer)
    row = sizes.prompt + answer
    row_tokens = {"label": row, "reference": 2 * answer}
    row_tokens |= {name: objective.sequences * row for name, objective in OBJECTIVES.items()}
    row_tokens["grpo"] = sizes.prompt + settings.get("completions", 1) * answer
    times = settings.get("epochs") or settings.get("candidates_per_prompt") or 1
    return float(sizes.rows * times * row_tokens.get(stage, answer))


def split_read(stage: str, settings: dict[str, Any]) -> str:
    """Return the split whose prompts a stage reads, asks, or has pairs of."""
    if stage in OBJECTIVES and OBJECTIVES[stage].reads is Reads.examples:
        return str(Split.sft)
    return "test" if stage == "eval" else str(settings.get("split", "preference"))


class Contribution(NamedTuple):
    """A source's `rows` for sft, its rows in the mixture over all epochs (`total`), and their tokens; None if unknown.
    `exact`: duplicates of rows in earlier sources are already removed."""

    name: str
    rows: int | None
    total: int | None
    tokens: float | None
    exact: bool


def contributions(data: Node, store: Store) -> list[Contribution]:
    """Return the contributions of a `data` node's sources; before it is built, without removing duplicates."""
    block: Data = data.config
    if not block.sources:  # a node without sources may be older than these metrics
        return []
    published = store.find(data)
    source_manifests = [store.find(source) for source in data.inputs.values()]
    rows = [m["metrics"]["examples"].get(Split.sft, 0) if m else None for m in source_manifests]
    rows = [n if n is None else min(n, source.rows or n) for n, source in zip(rows, block.sources, strict=True)]
    mixed: list[Amount] | None = None
    if published:
        source_metrics = published["metrics"]["sources"]
        rows = [each["for_sft"] for each in source_metrics]
        mixed = [Amount(each["for_sft"], each["examples"].get(Split.sft, 0)) for each in source_metrics]
    elif read_rows := [n for n in rows if n is not None]:
        mixed = plan_amounts(block.sources, block.mixture, read_rows) if len(read_rows) == len(rows) else None
    result = []
    for i, (source, node) in enumerate(zip(block.sources, data.inputs.values(), strict=True)):
        total = mixed[i].total if mixed else None
        manifest = source_manifests[i]
        row_tokens = sum(mean_tokens(manifest, store.folder(node), Split.sft)) if total and manifest else None
        tokens = None if total is None or row_tokens is None else total * row_tokens
        result.append(Contribution(source.task_name, rows[i], total, tokens, bool(published)))
    return result
