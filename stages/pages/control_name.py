"""The one name that the control of pairs, SFT on the chosen answers alone, has on all pages and in comparisons."""

from dataclasses import replace

from stages.evaluation.outcomes import differences
from stages.evaluation.results import PLAIN_SFT, Results
from stages.pages.glossary import STEPS

CONTROL = PLAIN_SFT
CONTROL_TITLE: str = STEPS["control"][0]


def name_control(results: Results) -> Results:
    """Return the results of an evaluation in which the control of pairs has this name."""
    if not results.has_plain_control:
        return results
    titles = {**results.models, "control": CONTROL_TITLE}
    named = {name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences(titles).items()}
    judged = dict(results.judged)
    if "control" in judged:
        against = judged["control"]
        judged["control"] = replace(against, opposed=replace(against.opposed, title=CONTROL_TITLE))
    return replace(results, models=titles, differences=named, judged=judged)
