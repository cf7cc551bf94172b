"""The answers that the report shows side by side: what the policy improved, damaged, and left alike."""

from pathlib import Path
from typing import Any

from stages.evaluation.outcomes import read_answers
from stages.store.records import Example, content_id, stream
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
