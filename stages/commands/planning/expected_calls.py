"""The calls that nodes make to endpoints, with their tokens and their price, as far as they are known.

A prompt is counted once its data is built, at CHARACTERS a token. An answer that is not there yet, and every reply,
counts with its maximum length. Cached replies and repeated calls are not predicted."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.commands.planning.rows import (
    candidates_per_prompt,
    expected_prompts,
    sources,
)
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import Judge, Label
from stages.config.blocks.sampling import OpenAI
from stages.config.blocks.training import ScoredGRPO
from stages.config.choices import Reading, Rubrics
from stages.endpoints.spending import MILLION
from stages.store.node import Node
from stages.store.store import Store

FRAME = 500  # characters that stages/labelers/rubric.py adds to a rubric
CHARACTERS = 4.0  # per token of English
TURNS = 8  # tokens that a chat template adds to a prompt


@dataclass
class PlannedCalls:
    """The calls that a node makes to an endpoint. `output_tokens` and `money` are the most that it can use. Numbers
    are nan if they are not known yet; `money` is None without a price."""

    node: str
    key: str
    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    money: float | None


def planned_calls(name: str, node: Node, store: Store) -> list[PlannedCalls]:
    """Return the expected calls of an unfinished node, one entry per endpoint."""
    block = node.config
    if store.find(node) or getattr(block, "own", None):
        return []
    if isinstance(block, OpenAI):
        calls = expected_prompts(node, store) * block.candidates_per_prompt
        key = f"{block.key}.endpoint"
        tokens = prompt_tokens(node, store)
        return [priced(name, key, block.endpoint, calls, tokens, block.max_new_tokens)]
    if isinstance(block, Judge):
        pool = node.inputs["pool"]
        calls = questions(block, pool, store) + (block.reading is Reading.json)  # the probe
        return to_judges(name, block, calls, question_tokens(block, pool, store))
    # groups of equal rewards ask for no more
    if isinstance(block, ScoredGRPO) and isinstance(block.label, Judge):
        return to_judges(name, block.label, math.nan, math.nan)
    return []


def to_judges(name: str, judge: Judge, calls: float, tokens: float) -> list[PlannedCalls]:
    """Return the calls to each endpoint of a judge, with `tokens` in each."""
    planned = []
    for i, endpoint in enumerate(judge.endpoints):
        key = f"{judge.block}.endpoints[{i}]"
        planned.append(priced(name, key, endpoint, calls, tokens, judge.max_tokens))
    return planned


def priced(
    node: str, key: str, endpoint: Endpoint, calls: float, tokens_in: float, most_out: int
) -> PlannedCalls:
    """Return calls with so many tokens into each and at most so many out, and what they cost."""
    price = endpoint.price
    money = None
    if price.input is not None and price.output is not None:
        money = calls * (tokens_in * price.input + most_out * price.output) / MILLION
    model = str(endpoint.model)
    return PlannedCalls(node, key, model, calls, calls * tokens_in, calls * most_out, money)


def waits_for_people(node: Node) -> bool:
    """Return whether a node waits for people's answers."""
    people = node.config.asked_people if isinstance(node.config, Label) else None
    return people is not None and not people.answered


def text_lengths(node: Node, table: str, store: Store) -> dict[str, Any]:
    """Return what the manifest of a finished node says of the texts of a table; {} if it is not finished."""
    manifest = store.find(node) or {}
    lengths: dict[str, Any] = manifest.get("lengths", {}).get(table, {})
    return lengths


def prompt_tokens(node: Node, store: Store) -> float:
    """Return the mean tokens of the prompts of its data that a node asks; nan before they are counted."""
    data = node.inputs.get("data")
    split = node.settings.get("split", "preference")
    lengths = text_lengths(data, split, store) if data else {}
    return lengths["prompt"] / CHARACTERS + TURNS if lengths else math.nan


def questions(judge: Judge, pool: Node, store: Store) -> float:
    """Return the questions to a judge about a pool: each text, or each pair of texts in both orders. Equal texts of a
    finished pool are one."""
    lengths = text_lengths(pool, "pool", store)
    if not lengths:
        each = questions_per_prompt(judge, candidates_per_prompt(pool))
        return expected_prompts(pool, store) * each
    total = 0.0
    for texts, prompts in lengths["texts"].items():
        total += prompts * questions_per_prompt(judge, int(texts))
    return total


def questions_per_prompt(judge: Judge, candidates: float) -> float:
    """Return the questions to a judge about one prompt with this many different candidates."""
    if judge.kind is Rubrics.pointwise:
        return candidates
    return 2 * min(candidates * (candidates - 1) / 2, judge.comparisons or math.inf)


def question_tokens(judge: Judge, pool: Node, store: Store) -> float:
    """Return the tokens of a question: the rubric, the request, and one or two answers."""
    rubric = Path(str(judge.rubric)).read_text(encoding="utf-8")
    answers = 2 if judge.kind is Rubrics.pairwise else 1
    lengths = text_lengths(pool, "pool", store)
    if lengths:
        prompt = lengths["prompt"] / CHARACTERS + TURNS
        answer = lengths["tokens"]
    else:
        source = sources(pool)[0]
        prompt = prompt_tokens(source, store)
        answer = getattr(source.config, "max_new_tokens", math.nan)
    return (FRAME + len(rubric)) / CHARACTERS + prompt + answers * float(answer)
