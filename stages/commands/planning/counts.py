"""Predict the tokens of a stage from its rows and their text lengths."""

import math
from typing import Any, NamedTuple

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import Forward, Reads, Split
from stages.store.manifest import Manifest
from stages.store.node import Node

CHARACTERS = 4.0  # per token
TURNS = 8  # tokens that the chat template adds to a prompt
TEXT = 100.0, 24.0  # mean characters of a generated prompt and its answer, until they are measured
OPEN = 250.0, 400.0  # mean characters of an open request and of a sampled answer
OF_LABELS = (Reads.pairs, Reads.unpaired)
# Stages whose rows are pairs or single completions
PAIRS = [
    "reference",
    *(name for name, objective in OBJECTIVES.items() if objective.reads in OF_LABELS),
]
READS_TOKENS = ("sample", "answer", "eval", "reference", *OBJECTIVES)  # and `label=reward_model`


class Sizes(NamedTuple):
    """The rows of a stage (prompts, pairs or candidates; 0 if unknown), and the mean tokens of prompt and answer."""

    rows: float
    prompt: float
    answer: float


def reads_tokens(stage: str, settings: dict[str, Any]) -> bool:
    """Return whether a stage sends tokens through a model."""
    if stage == "label":
        return bool(settings["labeler"] == "reward_model")
    return stage in READS_TOKENS and bool(settings.get("train", True)) and not settings.get("file")


def generated_rows(data: Node) -> dict[str, float]:
    """Return the expected rows of generated tasks by split."""
    rows_by_split = dict.fromkeys(SPLIT_OF_GROUP.values(), 0.0)
    for group, count in data.config.generated.items():
        rows_by_split[SPLIT_OF_GROUP[group]] += count
    return rows_by_split


def asked_prompts(node: Node, prompts: float) -> float:
    """Return how many of a split's prompts a stage asks: those of one round, up to its limit."""
    limits = [node.settings.get(key) or math.inf for key in ("prompts", "prompts_per_round")]
    return min(prompts / node.settings.get("rounds", 1), *limits)


def mean_tokens(manifest: Manifest, table: str) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of an answer in a finished node; `table`: a split, or `pairs`."""
    if not (lengths := manifest.get("lengths", {}).get(table)):
        return to_tokens(*TEXT)
    answered = lengths.get("answered", 1.0)
    return to_tokens(lengths["prompt"], answered * lengths["answer"] + (1 - answered) * OPEN[1])


def pool_lengths(manifest: Manifest) -> tuple[float, float]:
    """Return the mean tokens of a prompt and of a candidate in a finished pool."""
    if not (lengths := manifest.get("lengths", {}).get("pool")):
        return to_tokens(*TEXT)
    return to_tokens(lengths["prompt"], 0)[0], lengths["tokens"]


def pool_sources(pool: Node) -> list[Node]:
    """Return the `sample` nodes of a pool; a pool with one source is that node itself."""
    return (
        [pool]
        if pool.stage == "sample"
        else [node for role, node in pool.inputs.items() if role != "policy"]
    )


def candidates_per_prompt(sample: Node) -> float:
    """Return the candidates per prompt, or nan for a file, which may have any number."""
    return (
        math.nan
        if isinstance(sample.config, CandidateFile)
        else float(sample.config.candidates_per_prompt)
    )


def to_tokens(prompt: float, answer: float) -> tuple[float, float]:
    return prompt / CHARACTERS + TURNS, answer / CHARACTERS + 1


def stage_tokens(stage: str, settings: dict[str, Any], sizes: Sizes, from_base: bool) -> float:
    """Return the tokens that a stage generates or reads, from the lengths of its texts."""
    if stage == "eval":
        return float(
            settings["likelihood_prompts"] * len(settings["models"]) * (sizes.prompt + sizes.answer)
        )
    answer = sizes.answer
    if limit := settings.get("max_new_tokens"):
        answer = limit if from_base else min(limit, answer)
    row = sizes.prompt + answer
    row_tokens = {"label": row, "reference": sizes.prompt + 2 * answer}
    row_tokens |= {name: objective.sequences * row for name, objective in OBJECTIVES.items()}
    if settings.get("forward") == Forward.shared_prefix:
        row_tokens["dpo"] = row_tokens["reference"]  # a pair's prompt is read once
    row_tokens["grpo"] = sizes.prompt + settings.get("completions", 1) * answer
    times = settings.get("epochs") or settings.get("candidates_per_prompt") or 1
    return float(sizes.rows * times * row_tokens.get(stage, answer))


def split_read(stage: str, settings: dict[str, Any]) -> str:
    """Return the split whose prompts a stage reads, asks, or has pairs of."""
    if stage in OBJECTIVES and OBJECTIVES[stage].reads is Reads.examples:
        return str(Split.sft)
    return "test" if stage == "eval" else str(settings.get("split", "preference"))
