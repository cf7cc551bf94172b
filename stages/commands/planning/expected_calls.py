"""Predict the calls, tokens and costs of endpoints.

The tokens of a question follow from its characters, with typical lengths for answers that are not sampled yet. Replies
count with their maximum length. Cached replies and repeated calls are not predicted."""

import math
from dataclasses import dataclass
from pathlib import Path

from stages.commands.planning.cost import RunHistory, expected_pool_sizes, expected_sizes
from stages.commands.planning.counts import (
    CHARACTERS,
    candidates_per_prompt,
    pool_lengths,
    pool_sources,
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


@dataclass
class ExpectedCalls:
    """The expected calls of one node to one endpoint. Numbers are nan if the number of candidates is unknown."""

    key: str
    endpoint: Endpoint
    calls: float
    input: float
    output: float  # at most

    @property
    def money(self) -> float | None:
        """The cost of the calls, or None without a price."""
        price = self.endpoint.price
        if price.input is None or price.output is None:
            return None
        return (self.input * price.input + self.output * price.output) / MILLION


def endpoint_calls(node: Node, store: Store, history: RunHistory) -> list[ExpectedCalls]:
    """Return the expected calls of an unfinished node, one entry per endpoint."""
    block = node.config
    if store.find(node) or getattr(block, "own", None):
        return []
    if isinstance(block, OpenAI):
        sizes = expected_sizes(node, store, history)
        calls = (sizes.rows or math.nan) * block.candidates_per_prompt
        key = f"{block.key}.endpoint"
        return [
            ExpectedCalls(
                key, block.endpoint, calls, calls * sizes.prompt, calls * block.max_new_tokens
            )
        ]
    if isinstance(block, Judge):
        return judge_calls(block, node.inputs["pool"], store, history)
    # groups of equal rewards ask for no more
    if isinstance(block, ScoredGRPO) and isinstance(block.label, Judge):
        judges = enumerate(block.label.endpoints)
        return [ExpectedCalls(f"label.endpoints[{i}]", e, *[math.nan] * 3) for i, e in judges]
    return []


def waits_for_people(node: Node) -> bool:
    """Return whether a node waits for people's answers."""
    people = node.config.asks if isinstance(node.config, Label) else None
    return people is not None and not people.answered


def judge_calls(judge: Judge, pool: Node, store: Store, history: RunHistory) -> list[ExpectedCalls]:
    """Return the calls to judges for a pool: each pair of texts in both orders, or each text; and the probe."""
    manifest = store.find(pool)
    if manifest and (lengths := manifest.get("lengths", {}).get("pool")):
        calls = sum(
            prompts * questions_per_prompt(judge, int(n)) for n, prompts in lengths["texts"].items()
        )
        texts = pool_lengths(manifest)
    else:
        sizes = expected_pool_sizes(pool, store, history)
        drawn = (
            2.0 if pool.stage == "versus" else sum(map(candidates_per_prompt, pool_sources(pool)))
        )
        calls = (sizes.rows / drawn if sizes.rows else math.nan) * questions_per_prompt(
            judge, drawn
        )
        texts = sizes.prompt, sizes.answer
    calls += judge.reading is Reading.json  # the probe
    input_tokens = calls * question_tokens(judge, *texts)
    output_tokens = calls * judge.max_tokens
    return [
        ExpectedCalls(f"{judge.block}.endpoints[{i}]", e, calls, input_tokens, output_tokens)
        for i, e in enumerate(judge.endpoints)
    ]


def questions_per_prompt(judge: Judge, candidates: float) -> float:
    """Return the questions to a judge about one prompt with this many different candidates."""
    if judge.kind is Rubrics.pointwise:
        return candidates
    return 2 * min(candidates * (candidates - 1) / 2, judge.comparisons or math.inf)


def question_tokens(judge: Judge, prompt: float, answer: float) -> float:
    """Return the tokens of an average question: the rubric, the request, and one or two answers."""
    rubric = Path(str(judge.rubric)).read_text(encoding="utf-8")
    answers = 2 if judge.kind is Rubrics.pairwise else 1
    return (FRAME + len(rubric)) / CHARACTERS + prompt + answers * answer
