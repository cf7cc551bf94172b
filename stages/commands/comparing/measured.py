"""Read the evaluations of a store: the settings of every model, its results, and the prompts that it passed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, lineage_settings
from stages.config.blocks.training import OBJECTIVES
from stages.evaluation.intervals import Interval, Means
from stages.evaluation.outcomes import OUTSIDE, VIEWS, Outcome, speaks_for_other_tasks
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, load
from stages.store.sealed_json import Damaged, load_json, require_keys, warn_once
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint
FORWARD, BACKWARD, ADAPTER_BACKWARD = 2, 4, 2  # operations per parameter and token
ELSEWHERE = "openai"  # the sampler whose model runs on a server


def mean_over_runs(name: str) -> Any:
    """Return a property: the mean of this attribute over the object's `runs`."""
    return property(lambda self: fmean(getattr(run, name) for run in self.runs))


@dataclass
class Row:
    """A model in an evaluation, with the settings (`dpo.beta`) of all nodes that it was made from and the seconds that
    they took. `flops`: what its training took. `passed`: 0 or 1 for each prompt."""

    role: str
    named: str  # the role's name in the evaluation: with align=none, SFT is the policy
    fingerprint: str  # the evaluation's
    prompts: tuple[str, ...]  # the split, the endpoint, and which prompts these are
    settings: dict[str, str]
    results: dict[str, Any]
    seconds: float
    flops: float
    command: str
    tasks: list[str]
    tasks_drawn: bool
    passed: NDArray[Any]
    gain: Interval | None = None  # over the SFT model that this model was trained from

    @property
    def title(self) -> str:
        return str(self.results["models"][self.named])

    @property
    def rate(self) -> float:
        return float(self.results["primary"][self.named]["mean"])

    @property
    def kl(self) -> float:
        """The KL divergence from SFT, in nats per token."""
        # an estimate
        return max(0.0, self.results["kl"][self.role]["per_token"]) if self.role != "sft" else 0.0

    @property
    def retained_claims(self) -> str:
        """`2 of 3`: the claims of retention that hold for the policy."""
        claims = (
            (self.results.get("retention") or {}).get("claims", []) if self.role == "policy" else []
        )
        return f"{sum(claim['holds'] for claim in claims)} of {len(claims)}" if claims else "–"

    @property
    def seed(self) -> str:
        """The seed of the training that made this model."""
        trained_by = {"sft": "sft", "control": "control"}.get(self.role)
        policy = next((name for name in ("kto", "grpo") if f"{name}.seed" in self.settings), "dpo")
        return self.settings.get(f"{trained_by or policy}.seed", "–")


def measured_rows(store: Store, nodes: Nodes, is_included: Callable[[Key], bool]) -> list[Row]:
    """Return all models but the base of every included, intact evaluation. Of equal ones the last counts."""
    eval_keys = [
        key
        for key in nodes
        if key[0] == "eval" and is_included(key) and is_intact(store, nodes, key)
    ]
    examples_of = cache(partial(read_examples, store, nodes))
    latest_rows = dict[tuple[Any, ...], Row]()
    for key in eval_keys:  # oldest first
        result = load_json(nodes[key][0] / "results.json", require_keys("models", "primary"))
        if not result["primary"] or not {"sft", sft_role(nodes[key][1])} & {*result["models"]}:
            log.info(
                "eval %s is left out, as it has no pass rates of SFT: %s", key[1], result["verdict"]
            )
            continue
        sets = [name for name in ("data", "outside") if name in nodes[key][1]["inputs"]]
        examples = [e for name in sets for e in examples_of(input_key(nodes[key][1], name))]
        if not examples:
            log.info("eval %s is left out, as its prompts are deleted or damaged.", key[1])
            continue
        for role in (role for role in result["models"] if role not in ("base", "other")):
            row = read_row(nodes, key, role, result, examples)
            # a model may be the policy here and an arm there
            answers = input_key(nodes[key][1], f"answer_{role}")
            latest_rows[row.prompts, row.role == "sft", answers] = row
    return list(latest_rows.values())


def sft_role(manifest: Manifest) -> str:
    """Return the role of the SFT model in an evaluation: with `align=none` it is the policy."""
    return "policy" if manifest["inputs"]["policy"]["stage"] == "sft" else "sft"


def is_intact(store: Store, nodes: Nodes, key: Key) -> bool:
    """Return whether a node's files are intact, and warn if they are not."""
    try:
        store.verify(nodes[key][0], weights=False)
    except Damaged as error:
        warn_once(f"{nodes[key][0]} is left out: {error}")
        return False
    return True


def read_row(
    nodes: Nodes, key: Key, role: str, results: dict[str, Any], prompts: list[Example]
) -> Row:
    manifest = nodes[key][1]
    starts = [input_key(manifest, name) for name in (f"answer_{role}", role)]
    ancestors = lineage(nodes, *starts)
    # its own may be deleted
    answers = (m for m in (*ancestors, *lineage(nodes, key)) if m["stage"] == "answer")
    split = next((str(m["settings"]["split"]) for m in answers), "held-out")
    endpoint, shown_on = results["endpoint"], results["shown_on"]
    examples, passed = read_passes(nodes, key, endpoint, prompts)
    row = Row(
        role="sft" if role == sft_role(manifest) else role,
        named=role,
        fingerprint=key[1],
        prompts=(
            split,
            endpoint,
            content_id(shown_on, [[e.id, [vars(c) for c in e.checks]] for e in examples]),
        ),
        settings=lineage_settings(ancestors),
        results=results,
        seconds=sum(m["wall_seconds"] for m in ancestors),
        flops=training_flops(lineage(nodes, starts[1])),
        command=manifest["command"],
        tasks=[e.task for e in examples],
        tasks_drawn=speaks_for_other_tasks(examples),
        passed=passed[role],
    )
    if row.role != "sft":
        row.gain = Means(
            np.stack([passed["sft"], passed[role]], 1), row.tasks, row.tasks_drawn
        ).difference(1, 0)
    return row


def input_key(manifest: Manifest, role: str) -> Key:
    entry = manifest["inputs"][role]
    return entry["stage"], entry["fingerprint"]


def read_passes(
    nodes: Nodes, key: Key, endpoint: str, prompts: list[Example]
) -> tuple[list[Example], dict[str, NDArray[Any]]]:
    """Return those of an evaluation's prompts that the endpoint is about, and for each role 1 or 0 for each."""
    passed = {
        (row.prompt_id, row.role): row.passed
        for row in load(nodes[key][0] / "outcomes.parquet", Outcome)
    }
    prompt_ids, groups = {prompt_id for prompt_id, _ in passed}, VIEWS.get(endpoint, ())
    own = endpoint.removeprefix(OUTSIDE)  # a labelled set of the user's
    examples = [e for e in prompts if e.id in prompt_ids and (e.group in groups or e.task == own)]
    roles = {role for _, role in passed}
    return examples, {
        role: np.array([passed[e.id, role] for e in examples], float) for role in roles
    }


def read_examples(store: Store, nodes: Nodes, key: Key) -> list[Example]:
    """Return the prompts of a data node by id; none if the node is missing, damaged or from another version."""
    try:
        is_readable = key in nodes and is_intact(store, nodes, key)
        examples = load(nodes[key][0] / "examples.parquet", Example) if is_readable else []
        return sorted(examples, key=lambda e: e.id)
    except Damaged as error:
        log.warning("warning: %s", error)
        return []


def training_flops(manifests: list[Manifest]) -> float:
    """Return the operations of the trainings, samples and stored log-probs among the nodes that a model came from.

    A token costs 2 operations per parameter forward and 4 backward (Kaplan et al. 2020, arXiv:2001.08361, section
    2.1), or 2 backward where only adapters are trained. GRPO also samples the completions that it trains on. Attention
    over earlier tokens, labels by models, and endpoints are not counted. The result is nan if a base is deleted."""
    parameters = {
        m["fingerprint"]: float(m["metrics"]["parameters"])
        for m in manifests
        if m["stage"] == "base"
    }
    total = 0.0
    for m in manifests:
        if per_token := operations(m):
            tokens = m["metrics"]["tokens"] + m["metrics"].get("prompt_tokens", 0)
            total += per_token * tokens * parameters.get(m["roots"].get("base", ""), float("nan"))
    return total


def operations(m: Manifest) -> int:
    """Return the operations per parameter and token of a node; 0 if it runs no model here."""
    stage, settings = m["stage"], m["settings"]
    if "tokens" not in m["metrics"] or settings.get("sampler") == ELSEWHERE:
        return 0
    if stage in ("sample", "reference"):
        return FORWARD
    if stage not in OBJECTIVES:
        return 0
    backward = BACKWARD if settings.get("adapter", "none") == "none" else ADAPTER_BACKWARD
    # half of KTO's tokens are of mismatched completions, which are only read
    trained = 2 if stage == "kto" else 1
    return FORWARD + backward // trained + (FORWARD if stage == "grpo" else 0)
