"""The result of a run that examined models: their faults, and the verdict on them."""

from typing import Any

from stages.commands.run_result import BuiltNode, first_of
from stages.config.schema import Config
from stages.extras.examine.differences import load_differences
from stages.extras.examine.trained_models import settings_of


def read_result(built: list[BuiltNode]) -> dict[str, Any]:
    """Return the keys of the result. `faults`: what is wrong, and the keys that break answers; `verdict`: what is
    concluded; `findings`: what was seen; `differences` between the folders, key by key. All are null in a run that
    examined no model."""
    examination = first_of(built, "examine")
    diff = first_of(built, "diff")
    last = examination or diff
    faults = list(last.metrics["faults"]) if last else None
    metrics = examination.metrics if examination else {}
    return {
        "faults": faults,
        # a key that breaks answers is a fault, too
        "verdict": "faults" if faults else metrics.get("verdict"),
        "findings": metrics.get("findings"),
        "differences": list(load_differences(diff.folder)["rows"]) if diff else None,
    }


def is_failure(cfg: Config, built: list[BuiltNode]) -> bool:
    """Return True if faults are facts, or figures far beyond chance, and the user wants an exit code for these."""
    return bool(certain_faults(built)) and settings_of(cfg).strict


def certain_faults(built: list[BuiltNode]) -> list[str]:
    """Return the certain faults. All keys that break answers are facts."""
    examination = first_of(built, "examine")
    if examination:
        return list(examination.metrics["certain"])
    diff = first_of(built, "diff")
    return list(diff.metrics["faults"]) if diff else []
