"""A first guess at the time of nodes that were never measured: published speeds, scaled to this processor.

The speed of a processor is that of a product of numpy, which takes a fifth of a second. No torch is loaded."""

import math
import time
from functools import cache

import numpy as np

from stages.commands.earlier import uses_gpu
from stages.config.blocks.data import SPLIT_OF_GROUP, Data
from stages.config.blocks.draws import Drawing
from stages.config.blocks.evaluation import Answer
from stages.config.blocks.objective import Training
from stages.config.blocks.sampling import DrawnCandidates, OpenAI
from stages.config.blocks.training import Reference
from stages.config.choices import Precision, Split
from stages.extras.forecast.peak import longest_row_tokens, model_shape
from stages.extras.forecast.rows import candidates_per_prompt, expected_prompts
from stages.preflight.file_rows import file_lengths
from stages.store.node import Node
from stages.store.store import Store

# docs/explanation/benchmarks.md: SmolLM2-135M in fp32 on one core, and the core's product of numpy
PUBLISHED_PARAMETERS = 134.5e6
PUBLISHED_PRODUCT = 140e9  # floating-point operations per second
TRAINED_PER_SECOND = 85.0  # tokens
SCORED_PER_SECOND = 370.0
DRAWN_PER_SECOND = 155.0
FASTER_IN_BF16 = (
    1.8  # of the same page: DPO's step, 17.1 s and 9.7 s; sampling, 489 and 957 tokens per second
)
SECONDS_OF_A_START = 5.0  # of a node: imports, loading, writing
SHARE_OF_LONGEST_ANSWER = 0.5  # of max_new_tokens that an answer has, when a model ends its turns
SIZE = 512  # rows of the matrices
SECONDS_OF_THE_PRODUCT = 0.2
# without a model, or with little work for it
QUICK = (
    "base",
    "data",
    "source",
    "label",
    "pairs",
    "unpaired",
    "select",
    "pool",
    "sft",
    "eval",
    "report",
)


@cache
def product_per_second() -> float:
    """Return this processor's floating-point operations per second in a product of numpy."""
    matrix = np.ones((SIZE, SIZE), np.float32)
    product = matrix @ matrix  # the first one starts threads
    started = time.perf_counter()
    products = 0
    while time.perf_counter() - started < SECONDS_OF_THE_PRODUCT:
        np.matmul(matrix, matrix, out=product)
        products += 1
    return 2 * SIZE**3 * products / (time.perf_counter() - started)


def guess_seconds(node: Node, nodes: dict[str, Node], store: Store) -> float:
    """Return a first guess at the seconds of a node; nan on a GPU, for stages that no speed is published of, or if the
    rows are not known yet."""
    block = node.config
    if isinstance(block, Drawing | OpenAI) or uses_gpu(node):
        return math.nan
    work = 0.0
    if isinstance(block, Training) and getattr(block, "train", True):
        work = block.epochs * tokens_read(node, store, nodes) / TRAINED_PER_SECOND
    elif isinstance(block, Reference):
        training = training_on(node, nodes)
        work = tokens_read(training, store, nodes) / SCORED_PER_SECOND
    elif isinstance(block, DrawnCandidates | Answer):
        candidates = (
            len(block.temperatures) if isinstance(block, Answer) else candidates_per_prompt(node)
        )
        tokens = candidates * block.max_new_tokens * SHARE_OF_LONGEST_ANSWER
        work = prompts_asked(node, nodes, store) * tokens / DRAWN_PER_SECOND
    elif node.stage not in QUICK or (hasattr(block, "runtime") and node.stage == "label"):
        return math.nan
    return SECONDS_OF_A_START + scaled(work, node, store)


def scaled(work: float, node: Node, store: Store) -> float:
    """Return the seconds on this processor of `work` seconds on the published one, by the sizes of the models too."""
    if not work:
        return work
    shape = model_shape(node, store)
    if shape is None:
        return math.nan
    seconds = work * shape.parameters / PUBLISHED_PARAMETERS
    seconds *= PUBLISHED_PRODUCT / product_per_second()
    if getattr(node.config, "precision", None) is Precision.bf16:
        seconds /= FASTER_IN_BF16
    return seconds


def training_on(node: Node, nodes: dict[str, Node]) -> Node:
    """Return the first training that reads a node."""
    return next(
        each
        for each in nodes.values()
        if isinstance(each.config, Training) and node in each.inputs.values()
    )


def tokens_read(training: Node, store: Store, nodes: dict[str, Node]) -> float:
    """Return the tokens of an epoch; nan if the rows are not known yet."""
    block: Training = training.config
    lengths = file_lengths(training)
    mean = lengths.mean_tokens if lengths else float(block.objective.row_tokens)
    completions = 2 if "pairs" in training.inputs else 1
    row_tokens = completions * min(mean, longest_row_tokens(training, nodes))
    return rows_read(training, store) * row_tokens


def rows_read(training: Node, store: Store) -> float:
    """Return the rows of a training: of its files, or of its data; nan if they are not known yet."""
    lengths = file_lengths(training)
    if lengths:
        return lengths.rows if lengths.whole else math.nan
    for role in ("pairs", "unpaired", "data"):
        if role in training.inputs:
            return rows_made(training.inputs[role], store)
    return math.nan


def prompts_asked(node: Node, nodes: dict[str, Node], store: Store) -> float:
    """Return the prompts that a node samples for or answers; nan if they are not known yet."""
    preferences = node.inputs.get("pairs") or node.inputs.get("unpaired")
    if preferences is None or store.find(preferences):
        return expected_prompts(node, store)
    rows = rows_read(training_on(preferences, nodes), store)
    held_out = rows * preferences.config.validation_fraction
    return min(held_out, node.config.open)


def rows_made(node: Node, store: Store) -> float:
    """Return the rows of a node: counted if it is finished, else one for each prompt that is sampled or generated; nan if
    they are not known."""
    manifest = store.find(node)
    if manifest:
        metrics = manifest["metrics"]
        counts = metrics.get("examples", {})
        return float(metrics.get("pairs") or metrics.get("completions") or sum(counts.values()))
    if isinstance(node.config, Data):
        groups = node.config.generated.items()
        return float(sum(count for group, count in groups if SPLIT_OF_GROUP[group] == Split.sft))
    for role in ("judged", "pairs"):
        if role in node.inputs:
            return rows_made(node.inputs[role], store)
    if "pool" in node.inputs:
        return expected_prompts(node.inputs["pool"], store)
    return math.nan
