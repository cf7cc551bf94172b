"""The sections of the report that extras bring: `page.py` in the folder of an extra reads what they show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.config.extras import folder_of, join_entries, modules_of_extras
from stages.evaluation.results import Results


@dataclass
class Sections:
    """`values` of the templates by name. `sentences` at the head of each section: a section without one is left out.
    `first`: the names of templates that stand above the answers. `opening` begins the sentence of the page."""

    values: dict[str, Any] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    opening: str = ""


def read_sections(inputs: Mapping[str, Path], results: Results, note: str) -> Sections:
    """Return the sections of all extras. `inputs`: the folders of the report's nodes by name; `note`: why nothing can be
    said of the run, or ''."""
    by_extra = dict[str, Sections]()
    for module in modules_of_extras("page"):
        by_extra[folder_of(module)] = module.read_sections(inputs, results, note)
    all_sections = Sections(
        values=join_entries({extra: each.values for extra, each in by_extra.items()}, "value"),
        sentences=join_entries(
            {extra: each.sentences for extra, each in by_extra.items()}, "section"
        ),
    )
    for sections in by_extra.values():
        all_sections.first += sections.first
        all_sections.opening += sections.opening
    return all_sections
