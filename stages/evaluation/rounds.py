"""Rounds of DPO on validation prompts: how far each policy is above SFT, and which round is best.

No test prompt chooses the number of rounds.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import ROUND
from stages.config.choices import Split
from stages.evaluation.asked import read_prompts
from stages.evaluation.intervals import Means
from stages.evaluation.outcomes import read_answers, tabulate


def compare_rounds(inputs: Mapping[str, Path], confidence: float) -> dict[str, Any]:
    """Return SFT's and each round's pass rate (`rates`), each round's difference to SFT (`gains`), the number of the
    best round, and its difference to the last one. Return {} if the evaluation has no answers by rounds."""
    numbers = sorted(int(name.removeprefix(ROUND)) for name in inputs if name.startswith(ROUND))
    if not numbers:
        return {}
    answers, _ = read_answers({f"{ROUND}{number}": inputs[f"{ROUND}{number}"] for number in numbers})
    answered = next(iter(answers.values()))
    prompts = [e for e in read_prompts({"data": inputs["data"]}, Split.validation) if e.id in answered]
    means, last = Means(tabulate(prompts, answers).passed, [e.task for e in prompts]), numbers[-1]
    best = max(numbers[1:], key=lambda number: means.means[number])  # the first of equal ones
    return {
        "prompts": len(prompts),
        "rates": [asdict(means.share(number, confidence)) for number in numbers],
        "gains": [asdict(means.difference(number, 0, confidence)) for number in numbers[1:]],
        "best": best,
        "over_last": asdict(means.difference(best, last, confidence)),
    }
