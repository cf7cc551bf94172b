"""Read the evaluations of a store: the settings of every model, its results, and the prompts that it passed."""

import logging
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from typing import Any

from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, lineage_settings
from stages.config.blocks.training import OBJECTIVES
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import (
    OUTSIDE,
    VIEWS,
    Outcome,
    Table,
    average_runs,
    speaks_for_other_tasks,
)
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, load
from stages.store.sealed_json import Damaged, load_json, require_keys, warn_once
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint
FORWARD = 2  # operations per parameter and token
BACKWARD = 4
ADAPTER_BACKWARD = 2
ELSEWHERE = "openai"  # the sampler whose model runs on a server


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

    @property
    def title(self) -> str:
        return str(self.results["models"][self.named])

    @property
    def rate(self) -> float:
        return float(self.results["primary"][self.named]["mean"])

    @property
    def tokens(self) -> float:
        """The mean length of an answer."""
        return float(self.results["mean_tokens"][self.named])

    @property
    def stop_rate(self) -> float:
        return float(self.results["stop_rate"][self.named])

    @property
    def gain(self) -> Interval | None:
        """The gain over the SFT model that this model was trained from."""
        difference = self.results["primary"].get(f"{self.named}-sft")
        return Interval(**difference) if difference else None

    @property
    def kl(self) -> float:
        """The KL divergence from SFT, in nats per token. An estimate may be below 0."""
        if self.role == "sft":
            return 0.0
        return max(0.0, self.results["kl"][self.role]["per_token"])

    @property
    def benchmarks(self) -> dict[str, float]:
        """The rate in each benchmark, by task, metric and number of prompts."""
        rows = self.results.get("benchmarks", [])
        return {
            f"{row['task']} {row['metric']} ({row['prompts']})": row[self.named]["mean"]
            for row in rows
        }

    @property
    def retained_claims(self) -> str:
        """`2 of 3`: the claims of retention that hold for the policy."""
        retention = self.results.get("retention")
        if not retention or self.role != "policy":
            return "–"
        claims = retention.get("claims", [])
        return f"{sum(claim['holds'] for claim in claims)} of {len(claims)}"

    @property
    def seed(self) -> str:
        """The seed of the training that made this model."""
        for stage in (self.role, "kto", "grpo", "dpo"):
            if f"{stage}.seed" in self.settings:
                return self.settings[f"{stage}.seed"]
        return "–"


def measured_rows(store: Store, nodes: Nodes, chosen: set[str] | None) -> list[Row]:
    """Return all models but the base of every intact evaluation in `chosen`, fingerprints of nodes; None: of every one
    in the store. Of equal models the last counts."""
    examples_of = cache(partial(read_examples, store, nodes))
    latest_rows = dict[tuple[Any, ...], Row]()
    for key, (folder, manifest) in nodes.items():  # oldest first
        if key[0] != "eval" or (chosen is not None and key[1] not in chosen):
            continue
        if not is_intact(store, nodes, key):
            continue
        results = load_json(folder / "results.json", require_keys("models", "primary"))
        start = "policy" if manifest["inputs"]["policy"]["stage"] == "sft" else "sft"
        if not results["primary"] or start not in results["models"]:
            verdict = results["verdict"]
            log.info("eval %s is left out, as it has no pass rates of SFT: %s", key[1], verdict)
            continue
        outcomes = sorted(load(folder / "outcomes.parquet", Outcome), key=attrgetter("prompt_id"))
        examples = dict[str, Example]()
        for name in ("data", "outside"):
            if name in manifest["inputs"]:
                examples |= examples_of(input_key(manifest, name))
        if not {outcome.prompt_id for outcome in outcomes} <= examples.keys():
            log.info("eval %s is left out, as its prompts are deleted or damaged.", key[1])
            continue
        table = average_runs([outcomes], examples)
        endpoint = results["endpoint"]
        if endpoint in VIEWS:
            table = table.group(*VIEWS[endpoint])
        else:  # a labelled set of the user's
            table = table.by("task")[endpoint.removeprefix(OUTSIDE)]
        for name in results["models"]:
            if name in ("base", "other"):
                continue
            row = read_row(nodes, key, name, results, table)
            if name == start:
                row.role = "sft"
            # a model may be the policy here and an arm there
            answers = input_key(manifest, f"answer_{name}")
            latest_rows[row.prompts, row.role == "sft", answers] = row
    return list(latest_rows.values())


def is_intact(store: Store, nodes: Nodes, key: Key) -> bool:
    """Return whether a node is in the store with intact files, and warn if they are not."""
    if key not in nodes:
        return False
    try:
        store.verify(nodes[key][0], weights=False)
    except Damaged as error:
        warn_once(f"{nodes[key][0]} is left out: {error}")
        return False
    return True


def read_row(nodes: Nodes, key: Key, role: str, results: dict[str, Any], table: Table) -> Row:
    manifest = nodes[key][1]
    model = input_key(manifest, role)
    ancestors = lineage(nodes, input_key(manifest, f"answer_{role}"), model)
    answers = [m for m in lineage(nodes, key) if m["stage"] == "answer"]
    split = answers[0]["settings"]["split"] if answers else "held-out"  # they may be deleted
    checks = [[e.id, [*map(vars, e.checks)]] for e in table.prompts]
    return Row(
        role=role,
        named=role,
        fingerprint=key[1],
        prompts=(split, results["endpoint"], content_id(results["shown_on"], checks)),
        settings=lineage_settings(ancestors),
        results=results,
        seconds=sum(m["wall_seconds"] for m in ancestors),
        flops=training_flops(lineage(nodes, model)),
        command=manifest["command"],
        tasks=[e.task for e in table.prompts],
        tasks_drawn=speaks_for_other_tasks(table.prompts),
        passed=table.passed[:, table.roles.index(role)],
    )


def input_key(manifest: Manifest, role: str) -> Key:
    entry = manifest["inputs"][role]
    return entry["stage"], entry["fingerprint"]


def read_examples(store: Store, nodes: Nodes, key: Key) -> dict[str, Example]:
    """Return the prompts of a node by id; none if the node is missing, damaged or from another version."""
    if not is_intact(store, nodes, key):
        return {}
    try:
        examples = load(nodes[key][0] / "examples.parquet", Example)
    except Damaged as error:
        log.warning("warning: %s", error)
        return {}
    return {example.id: example for example in examples}


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
        per_token = operations(m)
        if per_token:
            tokens = m["metrics"]["tokens"] + m["metrics"].get("prompt_tokens", 0)
            total += per_token * tokens * parameters.get(m["roots"].get("base", ""), float("nan"))
    return total


def operations(m: Manifest) -> int:
    """Return the operations per parameter and token of a node; 0 if it runs no model here."""
    stage = m["stage"]
    if "tokens" not in m["metrics"] or m["settings"].get("sampler") == ELSEWHERE:
        return 0
    if stage in ("sample", "reference"):
        return FORWARD
    if stage not in OBJECTIVES:
        return 0
    trains_all = m["settings"].get("adapter", "none") == "none"
    backward = BACKWARD if trains_all else ADAPTER_BACKWARD
    if stage == "kto":  # half of its tokens are of mismatched completions, which are only read
        backward //= 2
    if stage == "grpo":
        return 2 * FORWARD + backward
    return FORWARD + backward
