"""The answers that the report shows: models side by side, and one model over the steps of its training."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from stages.evaluation.asked import prompts_of
from stages.evaluation.judged import Comparison
from stages.evaluation.outcomes import read_answers
from stages.pages.settings_table import model_nodes
from stages.store.manifest import Manifest
from stages.store.records import Example, content_id, load
from stages.store.training_samples import Sample, read_samples
from stages.tasks.checks import share_passed

WON = {1.0: "better than", 0.5: "a tie with", 0.0: "worse than"}
OPEN = {"answer_held_out": "pairs", "answer_judged": "judged_prompts", "answer": "data"}  # sets by who has the prompts


class Answer(NamedTuple):
    """`passed`: whether its prompt's checks do; None where it has none."""

    role: str
    title: str
    text: str
    passed: bool | None = None


class Shown(NamedTuple):
    prompt: Example
    answers: list[Answer]


def side_by_side(inputs: Mapping[str, Path], results: Mapping[str, Any], count: int) -> dict[str, list[Shown]]:
    """`count` prompts under each heading: by what was judged of them, by what the policy changed in the share of
    checks that were passed before, or as they are; then by content: no choice."""
    found, models = dict[str, list[Shown]](), results["models"]
    for against, its in results["judged"].items():
        if "waiting" not in its:
            found |= by_judgement(inputs[f"versus_{against}"], inputs[f"judged_{against}"], against, its["title"], models)
    for name, role in OPEN.items():
        if f"{name}_policy" not in inputs:
            continue
        answers, _ = read_answers({role: inputs[f"{name}_{role}"] for role in models})
        asked = {e.id: e for e in prompts_of({"pairs" if role == "pairs" else "data": inputs[role]})}
        prompts = [asked[i] for i in sorted(answers["policy"], key=content_id)]
        shown = [Shown(e, [answer(e, role, models[role], answers[role][e.id].text) for role in models]) for e in prompts]
        found |= by_checks([s for s in shown if s.prompt.checks], results)
        if plain := [s for s in shown if not s.prompt.checks]:
            found[f"Of {len(plain)} {'of held-out pairs' if role == 'pairs' else 'without checks'}"] = plain
    return {heading: prompts[:count] for heading, prompts in found.items() if prompts}


def answer(prompt: Example, role: str, title: str, text: str) -> Answer:
    return Answer(role, title, text, share_passed(prompt.checks, text) == 1 if prompt.checks else None)


def by_judgement(versus: Path, label: Path, against: str, title: str, models: Mapping[str, str]) -> dict[str, list[Shown]]:
    """Prompts by what was judged of the policy's answer beside the other's."""
    comparison, found = Comparison.read(versus, label), dict[float, list[Shown]]()
    asked = {e.id: e for e in load(versus / "prompts.parquet", Example)}
    for ours, theirs in sorted(comparison.sides, key=lambda both: content_id(both[0].prompt_id)):
        both = [Answer(against, title, theirs.text), Answer("policy", models["policy"], ours.text)]
        found.setdefault(comparison.won(ours, theirs), []).append(Shown(asked[ours.prompt_id], both))
    return {f"Judged {word} {title}: {len(found[won])}": found[won] for won, word in WON.items() if won in found}


def by_checks(shown: list[Shown], results: Mapping[str, Any]) -> dict[str, list[Shown]]:
    """Prompts with checks by what the policy changed, the most changed first."""
    before, policy = results["models"][results["before"]], results["models"]["policy"]

    def passed(s: Shown, role: str) -> bool | None:
        return next(a.passed for a in s.answers if a.role == role)

    def change(s: Shown) -> float:
        shares = {a.role: share_passed(s.prompt.checks, a.text) for a in s.answers}
        return shares["policy"] - shares[results["before"]]

    sides = [(s, passed(s, "policy"), passed(s, results["before"])) for s in shown]
    fixed = [s for s, after, first in sides if after and not first]
    broken = [s for s, after, first in sides if first and not after]
    alike = [s for s, after, first in sides if after == first]
    return {
        f"Most improved, of {len(fixed)} that {policy} gets right and {before} did not": sorted(
            fixed, key=lambda s: -change(s)
        ),
        f"Most damaged, of {len(broken)} that {before} got right and {policy} does not": sorted(broken, key=change),
        f"Alike, of {len(alike)} on which both pass or both fail": alike,
    }


def strips(inputs: dict[str, Path], nodes: dict[str, Manifest], models: dict[str, str]) -> list[dict[str, Any]]:
    """Of every model that answered while it was trained: its title, what it began as, and a strip for each prompt.
    `models`: role and title."""
    found = []
    for role, name in model_nodes(nodes, models).items():
        if samples := read_samples(inputs[name]):
            by_prompt = groupby(sorted(samples, key=lambda s: (s.id, s.step)), key=lambda s: s.id)
            prompts = [strip([*answers]) for _, answers in by_prompt]
            found.append({"title": models[role], "start": start(nodes, name), "prompts": prompts})
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
