"""Under which licences the rows of a data set stand."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.store.records import Example

UNKNOWN = "not stated"


class Licences:
    """Counts rows by their licence. Generated ones are nobody's, and not counted."""

    def __init__(self) -> None:
        self.rows = Counter[str]()

    def count(self, example: Example) -> None:
        if not example.request:
            self.rows[example.licence or UNKNOWN] += 1

    def metrics(self) -> dict[str, Any]:
        """The rows of every licence, as `licences` among a node's metrics; nothing where none is stated."""
        return {"licences": dict(self.rows.most_common())} if {*self.rows} - {UNKNOWN} else {}


def licences_message(metrics: Mapping[str, Any]) -> str:
    """What a node's metrics say of licences, to go on with after what else is said of the data."""
    rows = ", ".join(f"{licence} ({count:,} rows)" for licence, count in metrics.get("licences", {}).items())
    return f"; licences: {rows}" if rows else ""
