"""Results of an evaluation that tests make by hand: what is not named is empty."""

from collections.abc import Mapping
from typing import Any

from stages.evaluation.intervals import Interval
from stages.evaluation.results import Behaviour, Group, Learnt, Results

DPO = {"base": "Base", "sft": "SFT", "policy": "DPO"}
Bounds = tuple[float, float, float]  # a mean, then its lower and its upper bound


def intervals(bounds: Mapping[str, Bounds]) -> dict[str, Interval]:
    return {name: Interval(*each) for name, each in bounds.items()}


def group(bounds: Mapping[str, Bounds], **fields: Any) -> Group:
    """Return the rates of a group of prompts. `bounds`: by role and difference."""
    row: dict[str, Any] = {"prompts": 800, "tasks": 28, "tasks_drawn": False, "set": "", "note": ""}
    row |= {"gained": 98, "lost": 70, "containing": None, "intervals": intervals(bounds)}
    return Group(**row | fields)


def learnt(ratio: Mapping[str, Bounds], **fields: Any) -> Learnt:
    """Return the results on held-out pairs. `ratio`: by role and difference."""
    row: dict[str, Any] = {"pairs": 500, "of": "500 held-out pairs", "prompts": 500, "note": ""}
    row |= {
        "ratio": intervals(ratio),
        "sum": {},
        "per_token": {},
        "longer": Interval(0.5, 0.4, 0.6),
        "moved": {"policy": 0.1},
        "blind": None,
    }
    return Learnt(**row | fields)


def results(
    groups: Mapping[str, Group] | None = None, models: dict[str, str] = DPO, **parts: Any
) -> Results:
    """Return results by checks; the verdict is about the first group."""
    groups = dict(groups or {})
    endpoint = next(iter(groups), None)
    empty: dict[str, Any] = {
        "models": models,
        "before": "sft",
        "main_difference": "policy-sft",
        "differences": {"policy-sft": "DPO − SFT"},
        "decoding": {"max_new_tokens": 64},
        "endpoint": endpoint,
        "primary": groups[endpoint] if endpoint else None,
        "groups": groups,
        "kinds": {},
        "tasks": {},
        "matched": None,
        "rephrased": None,
        "behaviour": Behaviour({}, {}, {}),
        "endings": "",
        "shown_on": endpoint,
        "open": {},
        "learnt": None,
        "judged": {},
        "gives_verdict": ["checks"],
        "kl": {},
        "references": None,
        "retention": None,
        "sections": {},
        "cautions": "",
        "verdict": "",
    }
    return Results(**empty | parts)
