"""What nodes would ask of endpoints: calls, tokens, and money where prices are known.

Tokens of a question follow from its characters, those of answers that are still to be drawn from what is usual; a
reply has as many as it may have. What earlier calls left is not asked again, what fails is: neither is known before.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from stages.commands.planning.cost import RunHistory, pool_to_be, sizes_to_be
from stages.commands.planning.tokens import CHARACTERS, length_of_pool, lengths_of, per_prompt, sources_of
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.labels import Judge, Label
from stages.config.blocks.sampling import Sample
from stages.config.choices import Reading, Rubrics
from stages.endpoints.spending import MILLION
from stages.store.node import Node
from stages.store.store import Store

FRAME = 500  # characters that stages/labelers/rubric.py puts around a rubric's texts


@dataclass
class ExpectedCalls:
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


def expected(node: Node, store: Store, past: RunHistory) -> list[ExpectedCalls]:
    """What a node that is still to be built would ask, by endpoint."""
    block = node.config
    if store.find(node) or getattr(block, "own", None):
        return []
    if isinstance(block, Sample) and block.sampler == "openai":
        sizes = sizes_to_be(node, store, past)
        calls = (sizes.rows or math.nan) * block.candidates_per_prompt
        key = f"{block.key}.endpoint"
        return [ExpectedCalls(key, block.endpoint, calls, calls * sizes.prompt, calls * block.max_new_tokens)]
    if isinstance(block, Label) and block.labeler == "judge":
        return judged(block, node.inputs["pool"], store, past)
    return []


def of_people(node: Node) -> bool:
    """Return whether a node waits for people."""
    return isinstance(node.config, Label) and "human" in node.config.labelers and not node.config.human.answered


def judged(block: Label, pool: Node, store: Store, past: RunHistory) -> list[ExpectedCalls]:
    """What a judge would be asked about a pool: of two different texts in both orders, or of each; and the probe."""
    judge = block.judge
    manifest = store.find(pool)
    if manifest and (lengths := lengths_of(manifest, store.folder(pool)).get("pool")):
        calls = sum(prompts * shown(judge, int(n)) for n, prompts in lengths["texts"].items())
        texts = length_of_pool(manifest, store.folder(pool))
    else:
        sizes, drawn = pool_to_be(pool, store, past), candidates_of(pool)
        calls = (sizes.rows / drawn if sizes.rows else math.nan) * shown(judge, drawn)
        texts = sizes.prompt, sizes.answer
    calls += judge.reading is Reading.json  # the probe
    asked, told = calls * length(block, *texts), calls * (judge.max_tokens or 0)
    keys = {f"{block.name}.judge.endpoints[{i}]": endpoint for i, endpoint in enumerate(judge.endpoints or ())}
    return [ExpectedCalls(key, endpoint, calls, asked, told) for key, endpoint in keys.items()]


def candidates_of(pool: Node) -> float:
    """Candidates of a prompt: two, where two models' answers are compared."""
    return 2.0 if pool.stage == "versus" else sum(map(per_prompt, sources_of(pool)))


def shown(judge: Judge, candidates: float) -> float:
    """Return how often a judge is asked about a prompt with so many candidates, none a copy of another."""
    if judge.kind is Rubrics.pointwise:
        return candidates
    return 2 * min(candidates * (candidates - 1) / 2, judge.comparisons or math.inf)


def length(block: Label, prompt: float, answer: float) -> float:
    """Tokens of a question of the usual length: two messages with the rubric, a request and one answer or two."""
    rubric = Path(str(block.judge.rubric)).read_text(encoding="utf-8")
    answers = 2 if block.judge.kind is Rubrics.pairwise else 1
    return (FRAME + len(rubric)) / CHARACTERS + prompt + answers * answer
