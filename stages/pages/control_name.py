"""The one name that the control, SFT on the chosen answers alone, has on all pages and in comparisons."""

from collections.abc import Mapping
from typing import Any

from stages.evaluation.outcomes import differences
from stages.pages.glossary import TEXTS

CONTROL = "plain SFT"  # in a sentence
CONTROL_TITLE: str = TEXTS["steps"]["control"][0]


def name_control(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of an evaluation in which the control has this name."""
    titles = dict(results["models"])
    if "control" not in titles:
        return dict(results)
    titles["control"] = CONTROL_TITLE
    named = {name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences(titles).items()}
    return {**results, "models": titles, "differences": named}
