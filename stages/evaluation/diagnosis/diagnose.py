"""The diagnosis of a run: all findings, the likeliest cause first, and a sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding

TOO_FEW = "too few to say"  # judgements
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
    good, unseen = outcome_of(run.results, part)
    normal = [f for f in asked if not f.severity]
    return Diagnosis(bool(good), told(part, good, unseen, found, title), found, follows, normal)


def outcome_of(results: dict[str, Any], part: str) -> tuple[bool | None, float | None]:
    """Return whether a part of the verdict is good, None where it cannot say yet; and where it shows no change, the
    points that one has to have."""
    if part == "judged":
        comparison = next(iter(results["judged"].values()))
        effect = comparison.get("effect", TOO_FEW)  # while people are waited for
        unseen = 100 * comparison["detectable"] if effect == "no measurable difference" else None
        return None if effect == TOO_FEW else effect == "better", unseen
    if part == "learnt":
        if results["learnt"]["note"]:
            return None, None
        interval, none = results["learnt"]["ratio"]["policy"], 0.5
    else:
        interval, none = results["primary"][results["main_difference"]], 0.0
    low, high = interval["low"] - none, interval["high"] - none
    return low > 0, 50 * (high - low) if low <= 0 <= high else None


def told(part: str, good: bool | None, unseen: float | None, found: list[Finding], title: str) -> str:
    """One sentence: the likeliest cause, or that nothing stands out."""
    if found and (cause := found[0].cause):
        measured = f"{cause.says} ({found[0].what} {found[0].shown}, normal is {found[0].range})"
        if good is False:
            return f"The likeliest cause is that {measured}."
        return f"{f'{title} {DID_WELL[part]}. ' if good else ''}What stands out is that {measured}."
    if good:
        return f"{title} {DID_WELL[part]}, and {IN_RANGE}."
    if unseen is None:
        return f"{IN_RANGE.capitalize()}."
    missed = f"A change of less than about {unseen:.0f} points cannot be told from none here: {MORE[part]} would tell."
    return f"{IN_RANGE.capitalize()}. {missed}"
