"""The section of the report on benchmarks."""

from collections.abc import Mapping
from pathlib import Path

from stages.evaluation.results import Results
from stages.extras.benchmarks.results import SECTION, read_rows, sentence
from stages.pages.extra_sections import Sections


def read_sections(inputs: Mapping[str, Path], results: Results, note: str) -> Sections:
    """Return the rates of every task, if there are any."""
    rows = read_rows(results)
    if not rows:
        return Sections()
    conclusion = sentence(rows, results.main_difference, results.differences, note)
    return Sections({"benchmarks": rows}, {SECTION: conclusion})
