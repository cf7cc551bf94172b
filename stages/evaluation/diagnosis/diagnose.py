"""The diagnosis of a run: all findings, the likeliest cause first, and a sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding

TOO_FEW = "too few to say"  # judgements
IN_RANGE = "nothing that was measured is out of its normal range"
# By the first part of a verdict: what a policy that did well did, and what would show a smaller change.
PARTS = {
    "checks": ("helped", "prompts of more tasks, or further seeds,"),
    "learnt": ("learnt the preferences", "more held-out pairs (pairs.validation_fraction)"),
    "judged": ("gives the better answers", "more judged prompts (eval.judged.prompts)"),
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
    return Diagnosis(bool(good), sentence(part, good, unseen, found, title), found, follows, normal)


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


def sentence(part: str, good: bool | None, unseen: float | None, out_of_range: list[Finding], title: str) -> str:
    """One sentence: the likeliest cause, or that nothing stands out."""
    did_well, more = PARTS[part]
    if out_of_range and (cause := out_of_range[0].cause):
        first = out_of_range[0]
        begins = "The likeliest cause is" if good is False else "What stands out is"
        begins = f"{title} {did_well}. {begins}" if good else begins
        return f"{begins} that {cause.says} ({first.what} {first.shown}, normal is {first.range})."
    if good:
        return f"{title} {did_well}, and {IN_RANGE}."
    missed = f" A change of less than about {unseen or 0:.0f} points cannot be told from none here: {more} would tell."
    return f"{IN_RANGE.capitalize()}.{missed if unseen else ''}"
