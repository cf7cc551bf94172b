"""Stage `eval`: did it help? Pass rates of base, SFT and DPO on the same held-out prompts, with intervals.

One primary endpoint, and the verdict from it alone: DPO minus SFT, share of prompts that pass all checks on seen
tasks (held-out instances and unseen phrasings). Everything else has an interval and no verdict.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages import contract
from stages.config import Eval
from stages.labelers.verifier import share_passed
from stages.models import autocast, device_of, load_model
from stages.progress import bar
from stages.records import Candidate, Example, load
from stages.statistics import Interval, interval, resampled_rates
from stages.store import Work

MODELS = ("base", "sft", "dpo")
ENOUGH_PROMPTS = 800
ENOUGH_TASKS = 12
LENGTH_DRIFT = 0.25


def run(cfg: Eval, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `results.json`: rates and differences by group, kind and family, lengths, stop rates, KL."""
    examples = {e.id: e for e in load(inputs["data"] / "examples.parquet", Example)}
    answers = {m: {a.prompt_id: a for a in load(inputs[m] / "answers.parquet", Candidate)} for m in MODELS}
    prompts = [examples[prompt_id] for prompt_id in answers["base"]]
    outcomes = np.array([[share_passed(e.checks, answers[m][e.id].text) == 1 for m in MODELS] for e in prompts], float)
    families = np.array([e.task for e in prompts])

    def rows(labels: list[str]) -> dict[str, Any]:
        """A comparison of the prompts under each label."""
        mine = {label: np.array(labels) == label for label in sorted(set(labels))}
        return {label: compare(outcomes[chosen], list(families[chosen]), cfg) for label, chosen in mine.items()}

    by_group = rows(["unseen tasks" if e.group == "unseen_tasks" else "seen tasks" for e in prompts])
    by_group["unseen phrasings"] = rows([e.group for e in prompts]).get("unseen_phrasings")
    by_group = {
        name: by_group[name] for name in ("seen tasks", "unseen phrasings", "unseen tasks") if by_group.get(name)
    }
    primary = by_group.get("seen tasks") or by_group["unseen tasks"]
    lengths = {m: float(np.mean([a.n_tokens for a in answers[m].values()])) for m in MODELS}
    stopped = {m: float(np.mean([a.finish_reason == "stop" for a in answers[m].values()])) for m in MODELS}
    drift = lengths["dpo"] / lengths["sft"] - 1
    if abs(drift) > LENGTH_DRIFT:
        word = "longer" if drift > 0 else "shorter"
        out.warn(f"DPO's answers are {abs(drift):.0%} {word} than SFT's: part of any change may be length.")
    results = {
        "groups": by_group,
        "kinds": rows([e.kind for e in prompts]),
        "tasks": rows([e.task for e in prompts]),
        "mean_tokens": lengths,
        "stop_rate": stopped,
        "kl": divergence(cfg, inputs, [examples[i] for i in sorted(answers["dpo"])][: cfg.kl_prompts], answers["dpo"]),
        "verdict": verdict(primary),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return {
        "device": str(device_of(cfg.runtime.device)),
        "pass_rate": {m: primary[m]["mean"] for m in MODELS},
        "unseen_tasks": {m: by_group["unseen tasks"][m]["mean"] for m in MODELS} if "unseen tasks" in by_group else {},
        "delta": {name: primary[name] for name in ("sft-base", "dpo-sft")},
        "mean_tokens": lengths,
        "stop_rate": stopped,
        "kl": results["kl"],
        "verdict": results["verdict"],
        "summary": f"base {primary['base']['mean']:.1%}, SFT {primary['sft']['mean']:.1%}, "
        f"DPO {primary['dpo']['mean']:.1%}. {results['verdict']}",
    }


def compare(outcomes: NDArray[Any], families: list[str], cfg: Eval) -> dict[str, Any]:
    """Rates of the models and paired differences between them, with intervals. Outcomes: (prompts, models), 0 or 1."""
    draws = resampled_rates(outcomes, families, cfg.bootstrap_samples, np.random.default_rng(cfg.seed))
    means = outcomes.mean(0)
    row: dict[str, Any] = {"prompts": len(outcomes), "tasks": len(set(families))}
    for i, model in enumerate(MODELS):
        row[model] = asdict(interval(means[i], draws[:, i], cfg.confidence))
    for a, b in (("sft", "base"), ("dpo", "sft")):
        i, j = MODELS.index(a), MODELS.index(b)
        row[f"{a}-{b}"] = asdict(interval(means[i] - means[j], draws[:, i] - draws[:, j], cfg.confidence))
    row["note"] = "too few tasks to say" if row["tasks"] < ENOUGH_TASKS else ""
    return row


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


@torch.no_grad()
def divergence(
    cfg: Eval, inputs: dict[str, Path], prompts: list[Example], answers: dict[str, Candidate]
) -> dict[str, float]:
    """KL(policy ‖ reference), exact at every position of the policy's own answers: nats per token and per answer."""
    device = device_of(cfg.runtime.device)
    policy = load_model(inputs["policy"] / "model").to(device)
    reference = load_model(inputs["reference"] / "model").to(device)
    terms = contract.load(inputs["policy"] / "model")
    total = tokens = 0.0
    with bar(len(prompts), "kl", "answer") as progress, autocast(cfg.precision, device):
        for example in prompts:
            prompt, answer = terms.prompt(example.messages), answers[example.id].token_ids
            ids = torch.tensor([prompt + answer], device=device)
            log_p, log_q = (
                m(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                for m in (policy, reference)
            )
            total += float((log_p.exp() * (log_p - log_q)).sum())
            tokens += len(answer)
            progress.update()
    return {"per_token": total / tokens, "per_answer": total / len(prompts), "answers": len(prompts)}
