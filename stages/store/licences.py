"""Where the rows of a data set come from: their licences, and their origins or the models that wrote them."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.store.bounded_yaml import parse_bounded
from stages.store.records import Example, Records

UNKNOWN = "not stated"
CARD = "README.md"
CARD_HEADER = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
# of a folder: the hub's card, or distilabel's
DATA_CARDS = (CARD, f"distiset_configs/{CARD}")
MOST_ORIGINS = 50  # more are addresses or ids, which no card lists


class Provenance:
    """Counts of rows by licence and by origin. Generated rows have neither, and are not counted."""

    def __init__(self) -> None:
        self.licences, self.origins = Counter[str](), Counter[str]()

    def count(self, example: Example) -> None:
        if not example.request:
            self.add(example.licence, example.origin)

    def add(self, licence: str | None, origin: str | None) -> None:
        self.licences[licence or UNKNOWN] += 1
        if len(self.origins) <= MOST_ORIGINS:
            self.origins[origin or UNKNOWN] += 1

    def metrics(self) -> dict[str, Any]:
        """Return the numbers of rows as the metrics `licences` and `origins`, each only if a row states one."""
        counts = {"licences": self.licences}
        if len(self.origins) <= MOST_ORIGINS:
            counts["origins"] = self.origins
        return {name: dict(c.most_common()) for name, c in counts.items() if {*c} - {UNKNOWN}}


def provenance_of(file: Path) -> dict[str, Any]:
    """Return the metrics of a table of examples."""
    provenance = Provenance()
    column = Records(file, Example).column
    rows = zip(column("request"), column("licence"), column("origin"), strict=True)
    for request, licence, origin in rows:
        if not request:
            provenance.add(licence, origin)
    return provenance.metrics()


def provenance_message(metrics: Mapping[str, Any]) -> str:
    """Return the end of a sentence with the licences and origins in a node's metrics, as `; licences: mit (12 rows)`;
    '' without any."""
    return "".join(
        f"; {name}: {', '.join(f'{key} ({count:,} rows)' for key, count in metrics[name].items())}"
        for name in ("licences", "origins")
        if name in metrics
    )


def card_header(card: Path) -> dict[str, Any]:
    """Return the header of a model's or a data set's card; {} without one."""
    if not card.is_file():
        return {}
    try:
        text = card.read_text(encoding="utf-8-sig")
        header = CARD_HEADER.match(text)
        if header is None:
            return {}
        values = parse_bounded(header[1])
    except (ValueError, yaml.YAMLError):  # a header of other words states nothing
        return {}
    return values if isinstance(values, dict) else {}


def data_licence(folder: Path) -> str | None:
    """Return the licence that the card of a data set's folder states; None without one."""
    for header in (card_header(folder / card) for card in DATA_CARDS):
        if name := header.get("license_name") or header.get("license"):
            return ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    return None
