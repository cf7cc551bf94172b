"""The answers that the report shows: models side by side, and one model over the steps of its training."""

from itertools import groupby
from pathlib import Path
from typing import Any

from stages.evaluation.outcomes import read_answers
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, stream
from stages.store.training_samples import Sample, read_samples
from stages.tasks.checks import share_passed


def side_by_side(inputs: dict[str, Path], models: dict[str, str], count: int) -> dict[str, list[dict[str, Any]]]:
    """`count` prompts under each heading, by what the policy changed in the share of checks that SFT passed, then by
    content: no choice. `models`: role and title."""
    answers, _ = read_answers({role: inputs[f"answer_{role}"] for role in models})
    examples = {e.id: e for e in stream(inputs["data"] / "examples.parquet", Example) if e.id in answers["sft"]}
    shown: list[dict[str, Any]] = []
    for prompt_id in sorted(answers["sft"], key=content_id):
        example = examples[prompt_id]
        given = {role: answers[role][prompt_id].text for role in models}
        score = {role: share_passed(example.checks, text) for role, text in given.items()}
        passed = {role: s == 1 for role, s in score.items()}
        change = score["policy"] - score["sft"]
        shown.append({"example": example, "answers": given, "passed": passed, "change": change})
    fixed = [s for s in shown if s["passed"]["policy"] and not s["passed"]["sft"]]
    broken = [s for s in shown if s["passed"]["sft"] and not s["passed"]["policy"]]
    alike = [s for s in shown if s["passed"]["sft"] == s["passed"]["policy"]]
    sft, policy = models["sft"], models["policy"]
    headings = {
        f"Most improved, of {len(fixed)} that {policy} gets right and {sft} did not": sorted(
            fixed, key=lambda s: -s["change"]
        ),
        f"Most damaged, of {len(broken)} that {sft} got right and {policy} does not": sorted(
            broken, key=lambda s: s["change"]
        ),
        f"Alike, of {len(alike)} on which both pass or both fail": alike,
    }
    return {heading: prompts[:count] for heading, prompts in headings.items() if prompts}


def strips(inputs: dict[str, Path], nodes: dict[str, Manifest], models: dict[str, str]) -> list[dict[str, Any]]:
    """Of every model that answered while it was trained: its title, what it began as, and a strip for each prompt.
    `models`: role and title."""
    found = []
    for role, title in models.items():
        name = nodes["eval"]["inputs"][role]["stage"] if role == "policy" else role
        if role != "base" and (samples := read_samples(inputs[name])):
            by_prompt = groupby(sorted(samples, key=lambda s: (s.id, s.step)), key=lambda s: s.id)
            prompts = [strip([*answers]) for _, answers in by_prompt]
            found.append({"title": title, "start": start(nodes, name), "prompts": prompts})
    return found


def strip(samples: list[Sample]) -> dict[str, Any]:
    """A prompt with its answers in the order of the steps. An answer that stays is there once, with its first and last
    step."""
    stays = [[*same] for _, same in groupby(samples, key=lambda s: (s.answer, s.finish_reason))]
    return {"prompt": samples[0].prompt, "answers": [{"first": same[0], "last": same[-1].step} for same in stays]}


def start(nodes: dict[str, Manifest], name: str) -> str:
    """What the answers of step 0 are. In a later round of `dpo.reference=sft` the policy begins as another model than
    the reference."""
    reference, begun = nodes[name]["inputs"].get("reference"), nodes[name]["inputs"].get("policy")
    if not (reference and begun):
        return "the model before training"
    anchor = next(m for m in nodes.values() if m["fingerprint"] == reference["fingerprint"])["inputs"]["reference"]
    return "the reference" if anchor["fingerprint"] == begun["fingerprint"] else "the model before training"
