"""What puts a pass rate in proportion: answers that hold the reference whatever their form, and what one constant
answer per task would score."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.evaluation.outcomes import Answers, Table, with_intervals
from stages.store.records import Example
from stages.store.text_units import lower_words
from stages.tasks.checks import share_passed

UNKNOWN: dict[str, Any] = {"containing": {}, "constant": None}  # of prompts that were not made with a reference


def of(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    return {"containing": containing(table, answers, cfg), "constant": constant(table.prompts)}


def containing(table: Table, answers: Answers, cfg: Eval) -> dict[str, Any]:
    """The share of answers that contain the reference's words in their order, whatever their case, their marks and
    what stands around them: by role, and paired differences, as of the strict rates; of the prompts that have a
    reference."""
    told = table.where(np.array([bool(e.reference) for e in table.prompts], bool))
    if not told.prompts:
        return {}
    held = [[holds(answers[role][e.id].text, e.reference or "") for role in told.roles] for e in told.prompts]
    return {"prompts": len(held), **with_intervals(told, np.array(held, float), cfg)}


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
