"""The table of the node that compares folders, as pages and results read it."""

from pathlib import Path
from typing import Any

from stages.store.sealed_json import load_json, require_keys


def load_differences(diff: Path) -> dict[str, Any]:
    """Return the sentence of the table, the titles of its models, and its rows."""
    differences: dict[str, Any] = load_json(
        diff / "differences.json", require_keys("sentence", "titles", "rows")
    )
    return differences
