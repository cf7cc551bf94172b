"""The rates that `stage=compare` shows beside pass rates."""

from stages.evaluation.results import Results
from stages.extras.benchmarks.results import SECTION, read_rows

TITLE = SECTION


def rates(results: Results, role: str) -> dict[str, float]:
    """Return a model's rates by task and metric."""
    return {
        f"{row.task} {row.metric} ({row.prompts})": row[role].mean for row in read_rows(results)
    }
