"""The tokens of a stage, from its rows and the lengths of their texts; and what each source brings to those of SFT."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.blocks.data import OPEN_GROUPS, SPLIT_OF_GROUP, Data
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Reads, Split
from stages.curation.mixing import Amount, amounts
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.store import Store

CHARACTERS = 4.0  # of a token
TURNS = 8  # tokens of a prompt that are its template's
TEXT = 100.0, 24.0  # characters of a generated prompt and of its answer, before there are any
OPEN = 250.0, 400.0  # of an open request, which comes without an answer
SELECTED = 0.4  # of the open requests that a base answers, those with an answer to learn from
# Stages whose rows are pairs.
PAIRS = ["reference", *(name for name, objective in OBJECTIVES.items() if objective.reads is Reads.pairs)]
READS_TOKENS = ("sample", "answer", "eval", "reference", *OBJECTIVES)  # `label` by a reward model does too


class Sizes(NamedTuple):
    """Rows of a stage in an epoch (prompts, pairs or candidates), 0 where nobody can say yet how many; and the tokens
    of a prompt and of an answer."""

    rows: float
    prompt: float
    answer: float


def reads_tokens(stage: str, settings: dict[str, Any]) -> bool:
    """Return whether a stage sends tokens through a model."""
    if stage == "label":
        return settings["labeler"] == "reward_model" and "own" not in settings
    return stage in READS_TOKENS and bool(settings.get("train", True)) and not settings.get("file")


def generated(data: Node, selected: bool = False) -> dict[str, float]:
    """Rows of generated tasks by split, before they are made; `selected` where the base answers open ones."""
    found = dict[str, float]()
    for group, rows in groups(data, selected).items():
        found[SPLIT_OF_GROUP[group]] = found.get(SPLIT_OF_GROUP[group], 0) + rows
    return found


def reads_selected(node: Node) -> bool:
    """Whether the rows that a node reads were selected from answers of the base."""
    return "data" in node.inputs and node.inputs["data"].stage == "select"


def asked(node: Node, prompts: float) -> float:
    """How many of a split's prompts a stage asks: in each round its share."""
    return min(prompts / node.settings.get("rounds", 1), node.settings.get("prompts") or math.inf)


def groups(data: Node, selected: bool) -> dict[str, float]:
    """Rows of generated tasks by what asks for them."""
    tasks = vars(data.config.tasks) if data.config.tasks else {}
    rows = {group: float(tasks.get(group, 0)) for group in SPLIT_OF_GROUP}
    return rows | {"open_sft": SELECTED * rows["open_sft"]} if selected else rows


def texts_of(data: Node, split: str, selected: bool = False) -> tuple[float, float]:
    """Mean characters of a prompt and of an answer of generated tasks, before they are made."""
    rows = {group: count for group, count in groups(data, selected).items() if SPLIT_OF_GROUP[group] == split}
    requests = sum(count for group, count in rows.items() if group in OPEN_GROUPS)
    share = requests / max(1, sum(rows.values()))
    return tuple(share * a + (1 - share) * b for a, b in zip(OPEN, TEXT, strict=True))  # type: ignore[return-value]


def length_of(manifest: Manifest, folder: Path, table: str) -> tuple[float, float]:
    """Return mean tokens of a prompt and of an answer in a finished node: of a split of examples, or of `pairs`."""
    if not (lengths := lengths_of(manifest, folder).get(table)):
        return in_tokens(*TEXT)
    answered = lengths.get("answered", 1.0)
    return in_tokens(lengths["prompt"], answered * lengths["answer"] + (1 - answered) * OPEN[1])


def length_of_pool(manifest: Manifest, folder: Path) -> tuple[float, float]:
    """Return mean tokens of a prompt, by its characters, and of a candidate of a finished pool."""
    if not (lengths := lengths_of(manifest, folder).get("pool")):
        return in_tokens(*TEXT)
    return in_tokens(lengths["prompt"], 0)[0], lengths["tokens"]


def lengths_of(manifest: Manifest, folder: Path) -> dict[str, dict[str, Any]]:
    """The lengths that a manifest has (`store/text_lengths.py`); of an earlier version's, its tables are measured."""
    return manifest["lengths"] if "lengths" in manifest else measured(manifest["stage"], folder)


@cache
def measured(stage: str, folder: Path) -> dict[str, dict[str, Any]]:
    from stages.store.text_lengths import text_lengths  # with pyarrow and numpy, which a plan is spared

    return text_lengths(stage, folder)


def sources_of(pool: Node) -> list[Node]:
    """The `sample` nodes that a pool is made of: itself, where it is one."""
    return [pool] if pool.stage == "sample" else [node for role, node in pool.inputs.items() if role != "policy"]


def per_prompt(sample: Node) -> float:
    """Candidates of a prompt; nan where a file holds any number."""
    return math.nan if isinstance(sample.config, CandidateFile) else float(sample.config.candidates_per_prompt)


def in_tokens(prompt: float, answer: float) -> tuple[float, float]:
    return prompt / CHARACTERS + TURNS, answer / CHARACTERS + 1


def tokens_of(stage: str, settings: dict[str, Any], sizes: Sizes, from_base: bool) -> float:
    """Return the tokens of a stage by the lengths of its texts: those that its manifest counts, or those it reads."""
    if stage == "eval":
        return float(settings["likelihood_prompts"] * len(settings["models"]) * (sizes.prompt + sizes.answer))
    answer = sizes.answer
    if limit := settings.get("max_new_tokens"):
        answer = limit if from_base else min(limit, answer)
    row = sizes.prompt + answer
    each = {"label": row, "reference": 2 * answer}
    each |= {name: objective.sequences * row for name, objective in OBJECTIVES.items()}
    times = settings.get("epochs") or settings.get("candidates_per_prompt") or 1
    return float(sizes.rows * times * each.get(stage, answer))


def split_of(stage: str, settings: dict[str, Any]) -> str:
    """Whose prompts a stage reads, asks, or has pairs of."""
    if stage in OBJECTIVES and OBJECTIVES[stage].reads is Reads.examples:
        return str(Split.sft)
    return "test" if stage == "eval" else str(settings.get("split", "preference"))


class Contribution(NamedTuple):
    """Of a source: `rows` for sft that it has, and how many come (`total`); None where nobody has read it yet. Where
    it is `exact`, those that earlier sources have are left out already."""

    name: str
    rows: int | None
    total: int | None
    tokens: float | None
    exact: bool


def contributions(data: Node, store: Store) -> list[Contribution]:
    """What the sources of a `data` node bring. Before it is built, as if they had no row in common."""
    block: Data = data.config
    if not block.sources:  # a node of generated tasks alone may be older than these figures
        return []
    made = store.find(data)
    read = [store.find(source) for source in data.inputs.values()]
    rows = [m["metrics"]["examples"].get(Split.sft, 0) if m else None for m in read]
    rows = [n if n is None else min(n, source.rows or n) for n, source in zip(rows, block.sources, strict=True)]
    found: list[Amount] | None = None
    if made:
        told = made["metrics"]["sources"]
        rows = [each["for_sft"] for each in told]
        found = [Amount(each["for_sft"], each["examples"].get(Split.sft, 0)) for each in told]
    elif known := [n for n in rows if n is not None]:
        found = amounts(block.sources, block.mixture, known) if len(known) == len(rows) else None
    result = []
    for i, (source, node) in enumerate(zip(block.sources, data.inputs.values(), strict=True)):
        total = found[i].total if found else None
        each = sum(length_of(m, store.folder(node), Split.sft)) if total and (m := read[i]) else None
        tokens = None if total is None or each is None else total * each
        result.append(Contribution(source.of_task, rows[i], total, tokens, bool(made)))
    return result
