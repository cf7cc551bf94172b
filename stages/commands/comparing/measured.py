"""Evaluations of the store, read back: of every model its settings, its figures, and which prompts it passed."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.commands.node_settings import Nodes, lineage, of_lineage
from stages.evaluation.intervals import Interval, Means
from stages.evaluation.outcomes import VIEWS, tabulate, tasks_drawn
from stages.store.manifest import Manifest
from stages.store.records import Candidate, Example, Pair, Record, content_id, load
from stages.store.sealed_json import Damaged, having, load_json, warn_once
from stages.store.store import Store

log = logging.getLogger(__name__)

Key = tuple[str, str]  # stage, fingerprint


@dataclass
class Row:
    """A model that an evaluation measured, with the settings of all it came from (`dpo.beta`) and the seconds that all
    of it took. `passed`: 0 or 1 by prompt, None where the store no longer has what tells."""

    role: str
    fingerprint: str  # the evaluation's
    prompts: tuple[str, ...]  # the split, the endpoint, and which prompts these are
    settings: dict[str, str]
    results: dict[str, Any]
    seconds: float
    command: str
    tasks: list[str] = field(default_factory=list)
    tasks_drawn: bool = False
    passed: NDArray[Any] | None = None
    gain: Interval | None = None  # over the SFT that this model came from

    @property
    def title(self) -> str:
        return str(self.results["models"][self.role])

    @property
    def interval(self) -> dict[str, float]:
        return dict(self.results["primary"][self.role])

    @property
    def rate(self) -> float:
        return self.interval["mean"]

    @property
    def kl(self) -> float:
        """From SFT, in nats per token."""
        return float(self.results["kl"][self.role]["per_token"]) if self.role != "sft" else 0.0

    @property
    def kept(self) -> str:
        """How many claims of retention hold, of those that the evaluation tested of the policy."""
        claims = (self.results.get("retention") or {}).get("claims", []) if self.role == "policy" else []
        return f"{sum(claim['holds'] for claim in claims)} of {len(claims)}" if claims else "–"

    @property
    def seed(self) -> str:
        """Of the training that made this model."""
        stage = {"sft": "sft", "control": "control"}.get(self.role, "dpo")
        return self.settings.get(f"{stage}.seed", "–")


def rows(store: Store, nodes: Nodes, wanted: Callable[[Key], bool]) -> list[Row]:
    """SFT, control and policy of every wanted evaluation that is published and whole. A model that several evaluations
    measured on the same prompts is told once, as the last of them found it."""
    found = [key for key in nodes if key[0] == "eval" and wanted(key) and sound(store, nodes, key)]
    results = {key: load_json(nodes[key][0] / "results.json", having()) for key in found}
    readable = [key for key in found if "models" in results[key]]
    if len(readable) < len(found):
        log.info("%d evaluations of an earlier version are left out.", len(found) - len(readable))
    for key in (key for key in readable if not by_checks(results[key])):
        log.info("eval %s passed no checks to compare by: %s", key[1], results[key]["verdict"])
    readable = [key for key in readable if by_checks(results[key])]
    prompts = Prompts(store, nodes)
    told: dict[tuple[Any, ...], Row] = {}
    for key in readable:  # oldest first
        manifest = nodes[key][1]
        for role in (role for role in results[key]["models"] if role != "base"):
            answer = manifest["inputs"][f"answer_{role}"]["fingerprint"]
            row = read(nodes, key, role, results[key], prompts)
            told[row.prompts, role, answer] = row
    return list(told.values())


def by_checks(results: dict[str, Any]) -> bool:
    """Whether an evaluation has pass rates of an SFT and of what came of it."""
    return bool(results["primary"]) and "sft" in results["models"]


def sound(store: Store, nodes: Nodes, key: Key) -> bool:
    """Whether a node is as it was published; one that is not is said, and left out."""
    folder, _ = nodes[key]
    try:
        store.verify(folder)
    except Damaged as error:
        warn_once(f"{folder} is left out: {error}")
        return False
    return True


def read(nodes: Nodes, key: Key, role: str, results: dict[str, Any], prompts: "Prompts") -> Row:
    manifest = nodes[key][1]
    starts = [input_key(manifest, name) for name in (f"answer_{role}", role)]
    above = lineage(nodes, *starts)
    settings, any_answer = of_lineage(above), lineage(nodes, key)
    split = next((str(m["settings"]["split"]) for m in any_answer if m["stage"] == "answer"), "held-out")
    endpoint = str(results.get("endpoint", "seen tasks"))  # before there was another
    examples = prompts.of(manifest, split, endpoint, int(results["primary"]["prompts"]))
    which = content_id([[e.id, [vars(c) for c in e.checks]] for e in examples])
    row = Row(
        role=role,
        fingerprint=key[1],
        prompts=(split, endpoint, which if examples else manifest["inputs"]["data"]["fingerprint"]),
        settings=settings,
        results=results,
        seconds=sum(m["wall_seconds"] for m in above),
        command=manifest["command"],
        tasks=[e.task for e in examples],
        tasks_drawn=tasks_drawn(examples),
    )
    row.passed = prompts.passed(starts[0], examples, row.rate)
    sft = prompts.passed(input_key(manifest, "answer_sft"), examples, float(results["primary"]["sft"]["mean"]))
    if row.passed is not None and sft is not None and role != "sft":
        row.gain = Means(np.stack([sft, row.passed], 1), row.tasks, row.tasks_drawn).difference(1, 0)
    return row


def input_key(manifest: Manifest, role: str) -> Key:
    given = manifest["inputs"][role]
    return given["stage"], given["fingerprint"]


class Prompts:
    """The prompts of evaluations' endpoints, and which of them a model passed: evaluations keep rates alone, so every
    answer is checked again."""

    def __init__(self, store: Store, nodes: Nodes):
        self.store, self.nodes = store, nodes
        self.examples = cache(self._examples)
        self.answers = cache(self._answers)

    def of(self, manifest: Manifest, split: str, endpoint: str, count: int) -> list[Example]:
        """By id; none where the store no longer has them all."""
        known = {p.prompt_id for p in self.pairs(manifest)}  # came from a file: these do not count
        every = self.examples(input_key(manifest, "data"))
        those = [e for e in every if e.split == split and e.checks and e.group in VIEWS.get(endpoint, ())]
        found = sorted((e for e in those if e.id not in known), key=lambda e: e.id)
        if len(found) > count:  # prompts that are too long for one of the models count for none
            keys = [input_key(manifest, role) for role in manifest["inputs"] if re.fullmatch("answer_[a-z]+", role)]
            found = [e for e in found if all(e.id in self.answers(key) for key in keys)]
        return found if len(found) == count else []

    def passed(self, answer: Key, examples: list[Example], rate: float) -> NDArray[Any] | None:
        """None where answers are gone, or give another rate than the evaluation's: other rules checked them."""
        answers = self.answers(answer)
        if not examples or not {e.id for e in examples} <= {*answers}:
            return None
        found = np.asarray(tabulate(examples, {"": answers}).passed[:, 0])
        return found if abs(found.mean() - rate) < 1e-9 else None

    def pairs(self, manifest: Manifest) -> list[Pair]:
        return self.table(input_key(manifest, "pairs"), "pairs.parquet", Pair) if "pairs" in manifest["inputs"] else []

    def _examples(self, key: Key) -> list[Example]:
        return self.table(key, "examples.parquet", Example)

    def _answers(self, key: Key) -> dict[str, Candidate]:
        return {a.prompt_id: a for a in self.table(key, "answers.parquet", Candidate)}

    def table(self, key: Key, name: str, kind: type[Record]) -> list[Record]:
        """What a node holds; nothing where it is gone, damaged, or of another version's shape."""
        try:
            there = key in self.nodes and sound(self.store, self.nodes, key)
            return load(self.nodes[key][0] / name, kind) if there else []
        except Damaged as error:
            log.warning("warning: %s", error)
            return []
