"""Progress bars with rate and ETA, quiet where nobody watches a terminal."""

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int, title: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """A bar on stderr; in a log file, a line every half minute."""
    watched = sys.stderr.isatty()
    return tqdm(
        total=total, initial=done, desc=title, unit=unit, dynamic_ncols=watched, mininterval=0.2 if watched else 30
    )
