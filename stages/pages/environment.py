"""The Jinja environment of all pages: escaping, filters for figures, and each model's look.

A look is a shape, a colour on light pages and one on dark pages. Models differ in shape and lightness too, for readers
who do not see hues. Every colour has a contrast of at least 3:1 to the page."""

import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    Template,
)
from markupsafe import Markup, escape

from stages.config.errors import visible
from stages.config.extras import EXTRAS, FOLDER
from stages.pages.glossary import in_words
from stages.store.numbers import bound, points, signed

# the places in keys and paths after which a line may break
BREAKS = re.compile(r"(_|=|/|\.(?=\D))")


@dataclass(frozen=True)
class Look:
    light: str
    dark: str
    glyph: str  # the shape in text


LOOKS = {
    "base": Look("#858d9c", "#768090", "▲"),
    "sft": Look("#0a3f70", "#5aa9f0", "■"),
    "control": Look("#7b3fa0", "#cfa5f5", "◆"),
    "control_pairs": Look("#1d7a57", "#b9f0d4", "▼"),
    "policy": Look("#cf4f08", "#ffb37f", "●"),
}


def written_out(value: Any) -> str:
    """Return a value, HTML or text, with invisible characters written out as escapes."""
    kind = Markup if isinstance(value, Markup) else str
    return kind(visible(str(value), "\n\t"))


def policy_of(script: str) -> str:
    """Return the Content-Security-Policy of a page that fetches nothing and runs this script alone."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    script_source = f"script-src 'sha256-{digest}'"
    return f"default-src 'none'; {script_source}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_short(value: float) -> str:
    """Return a number with three significant digits."""
    return signed(value, "{:z.3g}")


@cache
def environment() -> Environment:
    """Return a Jinja environment that escapes every expression and writes out its invisible characters."""
    pages = PackageLoader("stages", "pages")
    sections_of_extras = FileSystemLoader([FOLDER / name for name in EXTRAS])
    env = Environment(
        loader=ChoiceLoader([pages, sections_of_extras]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=written_out,
    )
    env.filters |= {"points": points, "bound": bound, "signed": signed, "in_words": in_words}
    env.filters["number"] = write_short
    env.filters["policy"] = policy_of
    env.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    env.filters["duration"] = lambda seconds: (
        f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
    )
    env.filters["size"] = lambda n: f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
    env.filters["line_ends"] = lambda text: (
        text.replace("\n", "⏎\n") if text.strip("\n") == "" else text
    )
    env.filters["breakable"] = lambda text: Markup(BREAKS.sub(r"\1<wbr>", str(escape(text))))
    env.globals["looks"] = LOOKS
    return env


def page_template(file: Path) -> Template:
    """Return the template of a page that stands beside the code of an extra."""
    return environment().from_string(file.read_text(encoding="utf-8"))
