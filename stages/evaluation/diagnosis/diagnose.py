"""The diagnosis of a run: all findings, the likeliest cause first, and a sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding

IN_RANGE = "nothing that was measured is out of its normal range"
# By the first part of a verdict: what it says of a policy that did well, and what would show a smaller change.
DID_WELL = {"checks": "helped", "learnt": "learnt the preferences", "judged": "gives the better answers"}
MORE = {
    "checks": "prompts of more tasks, or further seeds,",
    "learnt": "more held-out pairs (pairs.validation_fraction)",
    "judged": "more judged prompts (eval.judged.prompts)",
}


@dataclass(frozen=True)
class Diagnosis:
    """`found`: what is out of its range, likeliest cause first; `follows`: those of them that may follow from it;
    `normal`: the rest. `helped`: the first part of the verdict is good, and there is nothing to explain."""

    helped: bool
    sentence: str
    found: list[Finding]
    follows: list[Finding]
    normal: list[Finding]


def diagnose(run: Evidence, title: str) -> Diagnosis:
    """What is far out comes first, then what is out. Among these a cause comes before what it causes: what DPO was
    given before what it did, each in the order of the pipeline; last, what the evaluation could see. `title`: the
    policy's."""
    groups = (CAUSES, EFFECTS, EVALUATION)
    given, done, seen = ([f for measure in measures if (f := measure(run))] for measures in groups)
    asked = [*given, *done, *seen]
    found = sorted((f for f in asked if f.severity), key=lambda f: -f.severity)
    explained = any(f.severity == FAR for f in given)  # of opposite advice only one can be right
    follows = [f for f in found if explained and f in done]
    part = run.results["gives_verdict"][0]
    helped, unseen = outcome_of(run.results, part)
    normal = [f for f in asked if not f.severity]
    return Diagnosis(helped, told(part, helped, unseen, found, title), found, follows, normal)


def outcome_of(results: dict[str, Any], part: str) -> tuple[bool, float | None]:
    """Whether a part of the verdict is good; and the points that a change has to have to be seen, where none was."""
    if part == "judged":
        comparison = next(iter(results["judged"].values()))
        effect = comparison.get("effect")  # none while people are waited for
        return effect == "better", 100 * comparison["detectable"] if effect == "no measurable difference" else None
    if part == "learnt":
        interval, none, note = results["learnt"]["ratio"]["policy"], 0.5, results["learnt"]["note"]
    else:
        interval, none, note = results["primary"][results["main_difference"]], 0.0, ""
    low, high = interval["low"] - none, interval["high"] - none
    return low > 0 and not note, 50 * (high - low) if low <= 0 <= high and not note else None


def told(part: str, helped: bool, unseen: float | None, found: list[Finding], title: str) -> str:
    """One sentence: the likeliest cause, or that nothing stands out."""
    if found and (cause := found[0].cause):
        measured = f"{cause.says} ({found[0].what} {found[0].shown}, normal is {found[0].range})"
        if helped:
            return f"{title} {DID_WELL[part]}. What stands out is that {measured}."
        return f"The likeliest cause is that {measured}."
    if helped:
        return f"{title} {DID_WELL[part]}, and {IN_RANGE}."
    if unseen is None:
        return f"{IN_RANGE.capitalize()}."
    missed = f"A change of less than about {unseen:.0f} points cannot be told from none here: {MORE[part]} would tell."
    return f"{IN_RANGE.capitalize()}. {missed}"
