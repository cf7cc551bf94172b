"""The section of the report on suites."""

from collections.abc import Mapping
from pathlib import Path

from stages.evaluation.results import Results
from stages.extras.suites.results import SECTION, sentence, suites_of
from stages.pages.extra_sections import Sections


def read_sections(inputs: Mapping[str, Path], results: Results, note: str) -> Sections:
    """Return the results of every suite, if there are any."""
    suites = suites_of(results)
    if not suites:
        return Sections()
    return Sections({"suites": suites}, {SECTION: sentence(suites, results.models, note)})
