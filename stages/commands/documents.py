"""The documents beside this module: Markdown with places for what is known when they are written."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return the text of a template."""
    documents = Environment(
        loader=PackageLoader("stages", "commands"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return documents.get_template(template).render(values)
