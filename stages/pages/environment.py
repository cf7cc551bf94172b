"""Jinja with everything escaped, and filters for figures."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stages.pages.kinds import in_words
from stages.pages.roles import LOOKS


def environment() -> Environment:
    """Jinja with everything escaped, and filters for figures."""
    env = Environment(
        loader=PackageLoader("stages", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    env.filters["percent"] = lambda share: f"{100 * share:.1f}%"
    env.filters["points"] = points
    env.filters["duration"] = lambda seconds: f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
    env.filters["nats"] = lambda number: f"{number:.3f}".replace("-", "−")
    env.filters["more_nats"] = lambda number: f"{number:+.3f}".replace("-", "−")
    env.filters["minus"] = lambda text: re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    env.filters["in_words"] = in_words
    env.filters["size"] = lambda n: f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
    env.filters["visible"] = lambda text: text.replace("\n", "⏎\n") if text.strip("\n") == "" else text
    env.filters["breakable"] = lambda text: Markup(
        re.sub(r"(_|=|/|\.(?=\D))", r"\1<wbr>", str(escape(text)))
    )  # keys and paths
    env.globals["looks"] = LOOKS
    return env


def points(difference: float) -> str:
    """A difference of shares in points: `+8.6`, `−1.7`."""
    return f"{100 * difference + 0.0:+.1f}".replace("-0.0", "+0.0").replace("-", "−")
