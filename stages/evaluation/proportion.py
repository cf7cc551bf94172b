"""What puts a pass rate in proportion: answers that hold the reference whatever their form, and what one constant
answer per task would score."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from stages.evaluation.outcomes import Answers
from stages.store.records import Example
from stages.tasks.answers import lower_words
from stages.tasks.checks import share_passed


def of(prompts: Sequence[Example], answers: Answers) -> dict[str, Any]:
    return {"containing": containing(prompts, answers), "constant": constant(prompts)}


def containing(prompts: Sequence[Example], answers: Answers) -> dict[str, float]:
    """By role, the share of answers that contain the reference's words in their order, whatever their case, their
    marks and what stands around them; of the prompts that have a reference."""
    told = [e for e in prompts if e.reference]
    if not told:
        return {}
    return {role: fmean(holds(given[e.id].text, e.reference or "") for e in told) for role, given in answers.items()}


def holds(answer: str, reference: str) -> bool:
    wanted, found = lower_words(reference), lower_words(answer)
    if not wanted:  # marks alone
        return reference.strip() in answer
    return any(found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1))


def constant(prompts: Sequence[Example]) -> float | None:
    """The pass rate of one answer per task that looks at no prompt: the reference of one prompt that passes most of
    the task's others, chosen with hindsight. None where a prompt has no reference."""
    if not prompts or not all(e.reference for e in prompts):
        return None
    tasks: dict[str, list[Example]] = {}
    for e in prompts:
        tasks.setdefault(e.task, []).append(e)
    return sum(len(same) * carried_over(same) for same in tasks.values()) / len(prompts)


def carried_over(prompts: list[Example]) -> float:
    """Of one task's prompts, the share that the best of their references passes, but for the prompt it belongs to."""
    if len(prompts) == 1:
        return 0.0
    references = {e.reference or "" for e in prompts}
    passed = max(sum(share_passed(e.checks, text) == 1 for e in prompts) for text in references)
    return max(0, passed - 1) / (len(prompts) - 1)
