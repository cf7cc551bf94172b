"""The calls that nodes make to endpoints, with their tokens and their price, as far as they are known.

A prompt is counted once its data is built, at CHARACTERS_PER_TOKEN. An answer that is not there yet, and every reply,
counts with its maximum length. Cached replies and repeated calls are not predicted."""

import math
from pathlib import Path
from typing import Any

from stages.commands.plan_result import PlannedCalls
from stages.config.blocks.draws import Drawing
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import Judge, Label
from stages.config.blocks.sampling import OpenAI
from stages.config.choices import Reading, Rubrics
from stages.endpoints.spending import MILLION
from stages.extras.forecast.rows import (
    candidates_per_prompt,
    expected_prompts,
    sources_of_answers,
)
from stages.store.node import Node
from stages.store.store import Store

FRAME_CHARACTERS = 500  # that stages/labelers/rubric.py adds to a rubric
CHARACTERS_PER_TOKEN = 4.0  # of English
TEMPLATE_TOKENS = 8  # that a chat template adds to a prompt


def planned_calls(name: str, node: Node, store: Store) -> list[PlannedCalls]:
    """Return the expected calls of an unfinished node, one entry per endpoint."""
    block = node.config
    calls_users_code = getattr(block, "own", None)
    if store.find(node) or calls_users_code:
        return []
    if isinstance(block, OpenAI):
        calls = expected_prompts(node, store) * block.candidates_per_prompt
        key = f"{block.key}.endpoint"
        tokens = mean_prompt_tokens(node, store)
        return [with_price(name, key, block.endpoint, calls, tokens, block.max_new_tokens)]
    if isinstance(block, Judge):
        pool = node.inputs["pool"]
        calls = count_questions(block, pool, store) + (block.reading is Reading.json)  # the probe
        return calls_to_judges(name, block, calls, question_tokens(block, pool, store))
    # groups of equal rewards ask for no more
    if isinstance(block, Drawing) and isinstance(block.label, Judge):
        return calls_to_judges(name, block.label, math.nan, math.nan)
    return []


def calls_to_judges(
    name: str, judge: Judge, calls: float, tokens_in_each: float
) -> list[PlannedCalls]:
    """Return the calls to each endpoint of a judge, with `tokens_in_each`."""
    planned = []
    for i, endpoint in enumerate(judge.endpoints):
        key = f"{judge.block}.endpoints[{i}]"
        planned.append(with_price(name, key, endpoint, calls, tokens_in_each, judge.max_tokens))
    return planned


def with_price(
    node: str,
    key: str,
    endpoint: Endpoint,
    calls: float,
    tokens_in_each: float,
    most_out_of_each: int,
) -> PlannedCalls:
    """Return calls with so many tokens into each and at most so many out, and what they cost at most."""
    price = endpoint.price
    money = None
    if price.input is not None and price.output is not None:
        money = calls * (tokens_in_each * price.input + most_out_of_each * price.output) / MILLION
    model = str(endpoint.model)
    return PlannedCalls(
        node, key, model, calls, calls * tokens_in_each, calls * most_out_of_each, money
    )


def waits_for_people(node: Node) -> bool:
    """Return whether a node waits for people's answers."""
    people = node.config.asked_people if isinstance(node.config, Label) else None
    return people is not None and not people.answered


def text_lengths(node: Node, table: str, store: Store) -> dict[str, Any]:
    """Return what the manifest of a finished node says of the texts of a table; {} if it is not finished."""
    manifest = store.find(node) or {}
    lengths: dict[str, Any] = manifest.get("lengths", {}).get(table, {})
    return lengths


def mean_prompt_tokens(node: Node, store: Store) -> float:
    """Return the mean tokens of the prompts of its data that a node asks; nan before they are counted."""
    data = node.inputs.get("data")
    split = node.settings.get("split", "preference")
    lengths = text_lengths(data, split, store) if data else {}
    return lengths["prompt"] / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS if lengths else math.nan


def count_questions(judge: Judge, pool: Node, store: Store) -> float:
    """Return the number of questions to a judge about a pool. Equal texts of a finished pool are one."""
    lengths = text_lengths(pool, "pool", store)
    if not lengths:
        each = questions_per_prompt(judge, candidates_per_prompt(pool))
        return expected_prompts(pool, store) * each
    total = 0.0
    for different_texts, prompts in lengths["texts"].items():
        total += prompts * questions_per_prompt(judge, int(different_texts))
    return total


def questions_per_prompt(judge: Judge, candidates: float) -> float:
    """Return the questions to a judge about one prompt with this many different candidates: one for each, or two for
    each pair, in both orders."""
    if judge.kind is Rubrics.pointwise:
        return candidates
    pairs = min(candidates * (candidates - 1) / 2, judge.comparisons or math.inf)
    return 2 * pairs


def question_tokens(judge: Judge, pool: Node, store: Store) -> float:
    """Return the tokens of a question: the rubric, the request, and one or two answers."""
    rubric = Path(str(judge.rubric)).read_text(encoding="utf-8")
    answers = 2 if judge.kind is Rubrics.pairwise else 1
    lengths = text_lengths(pool, "pool", store)
    if lengths:
        prompt = lengths["prompt"] / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
        answer = lengths["tokens"]
    else:
        source = sources_of_answers(pool)[0]
        prompt = mean_prompt_tokens(source, store)
        answer = getattr(source.config, "max_new_tokens", math.nan)
    return (
        (FRAME_CHARACTERS + len(rubric)) / CHARACTERS_PER_TOKEN + prompt + answers * float(answer)
    )
