"""Outcomes: whether every model's answer to a prompt passes its checks, and what follows from that, with intervals."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.config.schema import Eval
from stages.evaluation.bootstrap import Interval, interval, resampled_means
from stages.store.records import Candidate, Example, load
from stages.tasks.checks import share_passed

MODELS = ("base", "sft", "dpo")

DIFFERENCES = (("sft", "base"), ("dpo", "sft"))

GROUPS = ("seen", "unseen_phrasings", "unseen_tasks")  # all but a request in all its phrasings

ENOUGH_PROMPTS = 800

ENOUGH_TASKS = 12

LENGTH_DRIFT = 0.25


@dataclass
class Table:
    """Prompts, and of each model's answer to them: whether it passes (0 or 1), its tokens, whether it ended itself.

    The three arrays are (prompts, models), models in the order of MODELS.
    """

    prompts: list[Example]
    passed: NDArray[Any]
    tokens: NDArray[Any]
    stopped: NDArray[Any]

    def where(self, chosen: NDArray[Any]) -> "Table":
        kept = [e for e, keep in zip(self.prompts, chosen, strict=True) if keep]
        return Table(kept, self.passed[chosen], self.tokens[chosen], self.stopped[chosen])

    def group(self, *names: str) -> "Table":
        return self.where(np.array([e.group in names for e in self.prompts], bool))

    def by(self, field: str) -> dict[str, "Table"]:
        labels = np.array([vars(e)[field] for e in self.prompts])
        return {str(label): self.where(labels == label) for label in sorted(set(labels))}


def read_answers(folders: dict[str, Path]) -> dict[str, dict[str, Candidate]]:
    """By model, then by prompt."""
    return {m: {a.prompt_id: a for a in load(folder / "answers.parquet", Candidate)} for m, folder in folders.items()}


def tabulate(prompts: list[Example], answers: dict[str, dict[str, Candidate]]) -> Table:
    """Check every answer."""
    given = [[answers[m][e.id] for m in MODELS] for e in prompts]
    passed = [[share_passed(e.checks, a.text) == 1 for a in row] for e, row in zip(prompts, given, strict=True)]
    return Table(
        prompts,
        np.array(passed, float).reshape(-1, len(MODELS)),
        np.array([[a.n_tokens for a in row] for row in given], float).reshape(-1, len(MODELS)),
        np.array([[a.finish_reason == "stop" for a in row] for row in given], float).reshape(-1, len(MODELS)),
    )


def compare(table: Table, cfg: Eval) -> dict[str, Any]:
    """Rates of the models and paired differences between them, with intervals."""
    families = [e.task for e in table.prompts]
    draws = resampled_means(table.passed, families, cfg.bootstrap_samples, np.random.default_rng(cfg.seed))
    means = table.passed.mean(0)
    row: dict[str, Any] = {"prompts": len(families), "tasks": len(set(families))}
    for i, model in enumerate(MODELS):
        row[model] = asdict(interval(means[i], draws[:, i], cfg.confidence, families))
    for a, b in DIFFERENCES:
        i, j = MODELS.index(a), MODELS.index(b)
        row[f"{a}-{b}"] = asdict(interval(means[i] - means[j], draws[:, i] - draws[:, j], cfg.confidence, families))
    row["note"] = "too few tasks to say" if row["tasks"] < ENOUGH_TASKS else ""
    return row


def matched(table: Table, cfg: Eval) -> dict[str, Any]:
    """How much of DPO - SFT is form: the comparison where both models' answers end by themselves, where they are of
    like length, and the points that come from prompts on which only DPO ended its answer.

    What is compared is chosen by what the models did, so these describe and do not test.
    """
    sft, dpo = MODELS.index("sft"), MODELS.index("dpo")
    both = (table.stopped[:, sft] > 0) & (table.stopped[:, dpo] > 0)
    alike = np.abs(table.tokens[:, dpo] - table.tokens[:, sft]) <= LENGTH_DRIFT * table.tokens[:, sft]
    views = {"both answers end by themselves": both, "answers of like length": alike}
    newly = (table.stopped[:, dpo] > 0) & (table.stopped[:, sft] == 0)
    gain = table.passed[:, dpo] - table.passed[:, sft]
    return {
        "views": {name: compare(table.where(chosen), cfg) for name, chosen in views.items() if chosen.any()},
        "gain": float(gain.mean()),
        "gain_from_stopping": float((gain * newly).mean()),
    }


def consistency(table: Table) -> dict[str, Any]:
    """Prompt sensitivity: of requests put in all their phrasings, the share that a model gets right always, sometimes
    and never, and the standard deviation over phrasings, averaged over requests."""
    requests = [request.passed for request in table.by("request").values()]
    if not requests:
        return {}
    rates = np.array([passed.mean(0) for passed in requests])
    spread = np.array([passed.std(0) for passed in requests]).mean(0)
    shares = {"always": rates == 1, "sometimes": (rates > 0) & (rates < 1), "never": rates == 0}
    return {
        "requests": len(requests),
        "phrasings": max(len(passed) for passed in requests),
        **{
            m: {"spread": float(spread[i])} | {name: float(share[:, i].mean()) for name, share in shares.items()}
            for i, m in enumerate(MODELS)
        },
    }


def verdict(primary: dict[str, Any]) -> str:
    """A plain sentence from the primary endpoint alone."""
    delta = Interval(**primary["dpo-sft"])
    word = "helped" if delta.low > 0 else "hurt" if delta.high < 0 else "made no measurable change"
    sentence = (
        f"DPO {word}: {delta.points()} over SFT, on {primary['prompts']} held-out prompts of {primary['tasks']} tasks."
    )
    if primary["prompts"] < ENOUGH_PROMPTS:
        sentence += f" Fewer than {ENOUGH_PROMPTS} prompts: a small effect would go unseen."
    return sentence
