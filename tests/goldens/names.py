"""Names of keys, files and nodes in texts, the same in every run and on every machine."""

import re
import sys

from stages.cli.explain import explain
from stages.config.installation import ROOT
from tests.helpers import DATA

KEY = re.compile(r"^[\w./\[\]-]+(?==|: )")
FINGERPRINT = re.compile(r"\b[0-9a-f]{12}\b")  # rows name the node that sampled them
# What differs from run to run: folders of tests, ports and times
PLACES = [
    (re.compile(r"/[^\s'\"=]*/pytest-of-\w+/pytest-\d+(/popen-gw\d+)?/[\w.-]+"), "TMP"),
    (re.compile(r"(127\.0\.0\.1|localhost|\[::1\]):\d+"), "SERVER"),
    (re.compile(r"\bport=[1-9]\d{3,}"), "port=PORT"),
    (re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d(-\d+)?"), "TIME"),
]


def named_key(message: str) -> str:
    """Return the key or the file that an error names first, or an empty string."""
    key = KEY.match(without_places(message))
    return key[0] if key else ""


def refused_key(error: Exception) -> str:
    """Return the key that a refusal names. Raise an error that is not the user's to correct."""
    message = explain(error)
    if message is None:
        raise error
    return named_key(message)


def without_places(text: str) -> str:
    """Return a text with the same names for the checkout, the data beside it and nodes, wherever and whichever they
    are."""
    return FINGERPRINT.sub("NODE", text.replace(str(DATA), "shared").replace(f"{ROOT}/", ""))


def without_folders(text: str) -> str:
    """Return a text with the same names for a test's folders, ports and times, too."""
    text = without_places(text.replace(sys.executable, "PYTHON"))
    for pattern, name in PLACES:
        text = pattern.sub(name, text)
    return text
