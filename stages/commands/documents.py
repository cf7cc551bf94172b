"""Markdown documents from templates, with places for what is known when they are written."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.evaluation.results import Results

EVALUATION = Path(__file__).with_name("evaluation.md.jinja")


def render(template: Path, **values: Any) -> str:
    """Return the text of a template."""
    documents = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return documents.get_template(template.name).render(values)


def evaluation_section(results: Results, confidence: float) -> str:
    """Return the section of a model card with the results of an evaluation. `confidence`: of its intervals."""
    return render(EVALUATION, level=confidence, results=results)
