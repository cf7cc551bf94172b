"""The diagnosis of a run: all findings, likeliest cause first, and one sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS, EVALUATION
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import FAR, Finding

TOO_FEW = "too few to say"  # the effect when judgements are too few
IN_RANGE = "nothing that was measured is out of its normal range"
# By the verdict's first part: the words for a good result, and what to add to detect a smaller change.
PARTS = {
    "checks": ("helped", "prompts of more tasks, or further seeds,"),
    "learnt": ("learnt the preferences", "more held-out pairs (pairs.validation_fraction)"),
    "judged": ("gives the better answers", "more judged prompts (eval.judged.prompts)"),
}


@dataclass(frozen=True)
class Diagnosis:
    """The findings `out_of_range`, likeliest cause first, and those `in_range`. `consequences`: findings out of range
    that the first one may have caused. `helped`: the verdict's first part is good, so nothing needs explaining."""

    helped: bool
    sentence: str
    out_of_range: list[Finding]
    consequences: list[Finding]
    in_range: list[Finding]


def diagnose(run: Evidence, title: str) -> Diagnosis:
    """Order the findings: far out of range first, then out of range, and causes before effects in pipeline order. The
    sample size of the evaluation comes last. `title`: the policy's title."""
    groups = (CAUSES, EFFECTS, EVALUATION)
    causes, effects, of_evaluation = ([f for measure in measures if (f := measure(run))] for measures in groups)
    findings = [*causes, *effects, *of_evaluation]
    out_of_range = sorted((f for f in findings if f.severity), key=lambda f: -f.severity)
    explained = any(f.severity == FAR for f in causes)  # an effect may suggest the opposite of its cause's advice
    consequences = [f for f in out_of_range if explained and f in effects]
    part = run.results["gives_verdict"][0]
    good, detectable = outcome_of(run.results, part)
    text = sentence(part, good, detectable, out_of_range, title)
    return Diagnosis(bool(good), text, out_of_range, consequences, [f for f in findings if not f.severity])


def outcome_of(results: dict[str, Any], part: str) -> tuple[bool | None, float | None]:
    """Return whether a part of the verdict is good (None: unknown), and the detectable points if nothing changed."""
    if part == "judged":
        comparison = next(iter(results["judged"].values()))
        effect = comparison.get("effect", TOO_FEW)  # absent until people have answered
        detectable = 100 * comparison["detectable"] if effect == "no measurable difference" else None
        return None if effect == TOO_FEW else effect == "better", detectable
    if part == "learnt":
        if results["learnt"]["note"]:
            return None, None
        interval, no_change = results["learnt"]["ratio"]["policy"], 0.5
    else:
        interval, no_change = results["primary"][results["main_difference"]], 0.0
    low, high = interval["low"] - no_change, interval["high"] - no_change
    return low > 0, 50 * (high - low) if low <= 0 <= high else None


def sentence(part: str, good: bool | None, detectable: float | None, out_of_range: list[Finding], title: str) -> str:
    """Name the likeliest cause, or say that nothing stands out."""
    did_well, more = PARTS[part]
    if out_of_range and (cause := out_of_range[0].cause):
        first = out_of_range[0]
        lead = "The likeliest cause is" if good is False else "What stands out is"
        lead = f"{title} {did_well}. {lead}" if good else lead
        return f"{lead} that {cause.clause} ({first.quantity} {first.value_text}, normal is {first.range_text})."
    if good:
        return f"{title} {did_well}, and {IN_RANGE}."
    limit = f" A change below about {detectable or 0:.0f} points cannot be detected here; {more} would help."
    return f"{IN_RANGE.capitalize()}.{limit if detectable else ''}"
