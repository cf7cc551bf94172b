"""What the models answered while they were trained, as strips: a prompt, and its answers over the steps."""

from itertools import groupby
from pathlib import Path
from typing import Any

from stages.store.manifest import Manifest
from stages.store.training_samples import Sample, read_samples


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
