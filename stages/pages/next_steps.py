"""What to do next: what leads on from a verdict, in a sentence, and the command for it."""

import math
from functools import partial
from typing import Any, NamedTuple

from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.intervals import Interval
from stages.store.manifest import Manifest

MOST = 2  # steps
ENOUGH_PAIRS = 100  # held out, to say what was learnt
MOST_HELD_OUT = 0.5  # of the pairs
JUDGE = "eval/judged=judge 'eval.judged.judge.endpoints=[{base_url: URL, model: NAME}]'"


class Step(NamedTuple):
    """`command` is '' where there is only advice."""

    words: str
    command: str


def helped(results: dict[str, Any]) -> bool:
    """Whether some part of the verdict says that answers are better, and none that they are worse."""
    signs = []
    for part in results["gives_verdict"]:
        if part == "checks":
            delta = Interval(**results["primary"][results["main_difference"]])
            signs.append((delta.low > 0) - (delta.high < 0))
        elif part == "judged":
            effects = [its.get("effect") for its in results["judged"].values()]
            signs += [(effect == "better") - (effect == "worse") for effect in effects]
    return max(signs, default=0) > 0 and min(signs) >= 0


def next_steps(
    results: dict[str, Any], evaluation: Manifest, seeds: list[int], why: Diagnosis | None, pairs: int
) -> list[Step]:
    """The steps that lead furthest, first. `evaluation`: its manifest, with the command that made it. `seeds`: of the
    run's trainings, none where it trained nothing. `pairs`: how many there are to hold out from."""

    steps, again = list[Step](), partial(run_again, evaluation)
    if waiting := sum(its.get("waiting", 0) for its in results["judged"].values()):
        steps.append(Step(f"{waiting:,} comparisons wait for people. This asks them:", again("stage=versus")))
    if "learnt" in results["gives_verdict"]:
        if not results["judged"]:
            words = "Pairs cannot say whether answers are better; a judge can, or people (eval/judged=human):"
            steps.append(Step(words, again(JUDGE)))
        if results["learnt"]["note"]:
            steps.append(more_pairs(pairs, again))
    if helped(results):
        steps += [Step("Talk to it:", again("stage=chat"))]
        steps += [Step("Take it elsewhere, as one file:", again("stage=export"))] if len(seeds) != 1 else []
    elif why and why.found and (cause := why.found[0].cause):
        steps.append(Step(f"It may be that {cause.says}. To try: {cause.advice}.", ""))
    if len(seeds) == 1:
        further = f"'seeds=[{seeds[0] + 1},{seeds[0] + 2}]'"
        steps.append(Step("Whether the recipe does it, and not this seed, two more say:", again(further)))
    return (steps or [Step("Talk to it:", again("stage=chat"))])[:MOST]


def run_again(evaluation: Manifest, *overrides: str) -> str:
    """The command of an evaluation's run, with more settings."""
    return " ".join([evaluation["command"].replace(" stage=eval", "", 1), *overrides])


def more_pairs(pairs: int, again: Any) -> Step:
    """How to have enough held-out pairs: a larger share of them, or, where that leaves too few, more rows."""
    share = math.ceil(100 * ENOUGH_PAIRS / max(1, pairs)) / 100
    if share > MOST_HELD_OUT:
        return Step(f"Too few pairs are held out to say: of {pairs:,} in all. Bring more rows.", "")
    words = f"Too few pairs are held out to say; so many leave {ENOUGH_PAIRS} or more:"
    return Step(words, again(f"pairs.validation_fraction={share:.2f}"))
