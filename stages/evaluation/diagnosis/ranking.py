"""The diagnosis of a run: all findings, the likeliest cause first, and a sentence."""

from dataclasses import dataclass
from typing import Any

from stages.evaluation.diagnosis.causes import CAUSES
from stages.evaluation.diagnosis.effects import EFFECTS
from stages.evaluation.diagnosis.evidence import Evidence
from stages.evaluation.diagnosis.finding import Finding
from stages.evaluation.outcomes import PRIMARY


@dataclass(frozen=True)
class Diagnosis:
    """`found`: what is out of its range, likeliest cause first; `normal`: the rest. `helped`: the verdict says so, and
    there is nothing to explain."""

    helped: bool
    sentence: str
    found: list[Finding]
    normal: list[Finding]


def diagnose(run: Evidence, title: str) -> Diagnosis:
    """What is far out comes first, then what is out. Among these a cause comes before what it causes: what DPO was
    given before what it did, each in the order of the pipeline. `title`: the policy's."""
    asked = [finding for measure in (*CAUSES, *EFFECTS) if (finding := measure(run)) is not None]
    found = sorted((f for f in asked if f.severity), key=lambda f: -f.severity)
    delta = run.results["primary"][PRIMARY]
    helped = delta["low"] > 0
    return Diagnosis(helped, told(helped, found, title, delta), found, [f for f in asked if not f.severity])


def told(helped: bool, found: list[Finding], title: str, delta: dict[str, Any]) -> str:
    """One sentence: the likeliest cause, or that nothing stands out."""
    if found and (cause := found[0].cause):
        measured = f"{cause.says} ({found[0].what} {found[0].shown}, normal is {found[0].range})"
        return f"{title} helped. What stands out: {measured}." if helped else f"The likeliest cause: {measured}."
    if helped:
        return f"{title} helped, and nothing that was measured is out of its normal range."
    half = 50 * (delta["high"] - delta["low"])
    return (
        f"Nothing that was measured is out of its normal range. A change of less than about {half:.0f} points cannot "
        "be told from none here: more test prompts or further seeds would tell, more pairs or rounds may give more."
    )
