"""What nodes would ask of endpoints: calls, tokens, and money where prices are known.

Tokens of a question follow from its characters, those of answers that are still to be drawn from what is usual; a
reply has as many as it may have. What is kept from earlier calls is not asked again, and what fails is: neither is
known before.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from stages.commands.planning.cost import Past, sizes_to_be
from stages.commands.planning.tokens import CHARACTERS, TURNS, Sizes, per_prompt, sources_of
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import Judge, Label
from stages.config.blocks.sampling import Sample
from stages.config.choices import Reading, Rubrics
from stages.endpoints.spending import MILLION
from stages.store.node import Node
from stages.store.store import Store


@dataclass
class Asked:
    """Of one endpoint by one node. Calls and tokens are nan where nobody knows yet how many candidates there are."""

    key: str
    endpoint: Endpoint
    calls: float
    input: float
    output: float  # at most

    @property
    def money(self) -> float | None:
        """None without a price."""
        price = self.endpoint.price
        if price.input is None or price.output is None:
            return None
        return (self.input * price.input + self.output * price.output) / MILLION


def expected(node: Node, nodes: dict[str, Node], store: Store, past: Past) -> list[Asked]:
    """What a node that is still to be built would ask, by endpoint."""
    block = node.config
    if store.find(node) or getattr(block, "own", None):
        return []
    if isinstance(block, Sample) and block.sampler == "openai" and not block.file:
        sizes, _ = sizes_to_be(node, nodes, store, past)
        calls = (sizes.rows or math.nan) * block.candidates_per_prompt
        key = f"{block.key}.endpoint"
        return [Asked(key, block.endpoint, calls, calls * sizes.prompt, calls * block.max_new_tokens)]
    if isinstance(block, Label) and block.labeler == "judge":
        return judged(block, node.inputs["pool"], nodes, store, past)
    return []


def judged(block: Label, pool: Node, nodes: dict[str, Node], store: Store, past: Past) -> list[Asked]:
    """What each judge would be asked about a pool: of two candidates in both orders, or of each; and the probe."""
    judge, sources = block.judge, sources_of(pool)
    sizes, _ = sizes_to_be(sources[0], nodes, store, past)
    if store.find(pool):
        calls = float(counted(judge, store.folder(pool)))
    else:
        calls = (sizes.rows or math.nan) * shown(judge, sum(map(per_prompt, sources)))
    calls += judge.reading is Reading.json  # the probe
    asked, told = calls * length(block, sizes), calls * (judge.max_tokens or 0)
    keys = {f"label.judge.endpoints[{i}]": endpoint for i, endpoint in enumerate(judge.endpoints or ())}
    return [Asked(key, endpoint, calls, asked, told) for key, endpoint in keys.items()]


def shown(judge: Judge, candidates: float) -> float:
    """Return how often a judge is asked about a prompt with so many candidates, none a copy of another."""
    if judge.kind is Rubrics.pointwise:
        return candidates
    return 2 * min(candidates * (candidates - 1) / 2, judge.comparisons or math.inf)


def counted(judge: Judge, pool: Path) -> int:
    """Return how often a judge is asked about a finished pool: equal requests are one call, and copies are a tie."""
    from stages.labelers.comparisons import compared  # with pyarrow, not for a plan of what has no candidates yet
    from stages.store.judged import by_prompt
    from stages.store.records import Candidate, Example, Records

    prompts = Records(pool / "prompts.parquet", Example).column("id")
    calls = 0
    for candidates in by_prompt(Records(pool / "candidates.parquet", Candidate), prompts):
        if judge.kind is Rubrics.pointwise:
            calls += len({c.text for c in candidates})
        else:
            pairs = compared(candidates, judge.comparisons, judge.seed or 0)
            calls += 2 * len({frozenset((a.text, b.text)) for a, b in pairs if a.stripped_text != b.stripped_text})
    return calls


def length(block: Label, sizes: Sizes) -> float:
    """Tokens of a question of the usual length."""
    from stages.labelers.rubric import Rubric  # with pyarrow, not for a plan without a judge

    rubric = Rubric(block.judge)
    request, answer = ("x" * round(CHARACTERS * tokens) for tokens in (sizes.prompt, sizes.answer))
    answers = [answer] * (2 if rubric.kind is Rubrics.pairwise else 1)
    messages = rubric.messages([{"role": "user", "content": request}], answers)
    return sum(len(m["content"]) / CHARACTERS + TURNS for m in messages)
