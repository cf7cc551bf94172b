"""One environment renders every page and writes out invisible characters."""

from pathlib import Path

import pytest
from markupsafe import Markup

from stages.config.errors import UNSEEN
from stages.config.installation import ROOT
from stages.pages.environment import environment

RED = "\x1b[31m\x9b\x00\r\u202e\u2066\u200b\ufeff\U000e0041<b>"


@pytest.mark.parametrize(
    "value",
    [RED, Markup(RED), [RED], {RED: RED}, Path(RED), ValueError(RED)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "template",
    [
        "{{ value }}",
        '<i title="{{ value }}">',
        "{{ value ~ '' }}",
        "{% macro m(v) %}{{ v }}{% endmacro %}{{ m(value) }}",
    ],
)
def test_whatever_a_template_shows_is_written_out(value: object, template: str) -> None:
    html = environment().from_string(template).render(value=value)
    assert not UNSEEN.search(html) and "u202e" in html
    assert isinstance(value, Markup) or "<b>" not in html


def test_no_page_is_made_by_another_environment() -> None:
    makers = set[str]()
    for path in (ROOT / "stages").rglob("*.py"):
        if " Environment(" in path.read_text(encoding="utf-8"):
            makers.add(path.name)
    # documents are Markdown
    assert makers == {"environment.py", "documents.py"}
