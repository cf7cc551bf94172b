"""The licences of a data set's rows."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stages.store.records import Example

UNKNOWN = "not stated"


class Licences(Counter[str]):
    """A count of rows by licence. Generated rows have no licence, and are not counted."""

    def count(self, example: Example) -> None:
        if not example.request:
            self[example.licence or UNKNOWN] += 1

    def metrics(self) -> dict[str, Any]:
        """Return the number of rows by licence as the metric `licences`, or {} if no row states a licence."""
        return {"licences": dict(self.most_common())} if {*self} - {UNKNOWN} else {}


def licences_message(metrics: Mapping[str, Any]) -> str:
    """Return the end of a sentence with the licences in a node's metrics, as `; licences: mit (12 rows)`, or ''."""
    rows = ", ".join(
        f"{licence} ({count:,} rows)" for licence, count in metrics.get("licences", {}).items()
    )
    return f"; licences: {rows}" if rows else ""
