"""The answers that the report shows side by side: what DPO improved, what it damaged, and some it left alike."""

from pathlib import Path
from typing import Any

from stages.evaluation.outcomes import MODELS, read_answers
from stages.store.records import Example, content_id, load
from stages.tasks.checks import share_passed


def side_by_side(inputs: dict[str, Path], count: int) -> dict[str, list[dict[str, Any]]]:
    """`count` prompts under each heading, by the change in the share of checks passed, then by content: no choice."""
    examples = {e.id: e for e in load(inputs["data"] / "examples.parquet", Example)}
    answers = read_answers({m: inputs[f"answer_{m}"] for m in MODELS})
    shown: list[dict[str, Any]] = []
    for prompt_id in sorted(answers["base"], key=content_id):
        example = examples[prompt_id]
        given = {m: answers[m][prompt_id].text for m in MODELS}
        score = {m: share_passed(example.checks, text) for m, text in given.items()}
        passed = {m: s == 1 for m, s in score.items()}
        shown.append({"example": example, "answers": given, "passed": passed, "change": score["dpo"] - score["sft"]})
    fixed = [s for s in shown if s["passed"]["dpo"] and not s["passed"]["sft"]]
    broken = [s for s in shown if s["passed"]["sft"] and not s["passed"]["dpo"]]
    alike = [s for s in shown if s["passed"]["sft"] == s["passed"]["dpo"]]
    headings = {
        f"Most improved, of {len(fixed)} that DPO gets right and SFT did not": sorted(
            fixed, key=lambda s: -s["change"]
        ),
        f"Most damaged, of {len(broken)} that SFT got right and DPO does not": sorted(
            broken, key=lambda s: s["change"]
        ),
        f"Alike, of {len(alike)} on which both pass or both fail": alike,
    }
    return {heading: prompts[:count] for heading, prompts in headings.items() if prompts}
