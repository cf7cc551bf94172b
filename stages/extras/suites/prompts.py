"""Generate the prompts of `eval.suites`, twins with checks, from `prompts.yaml`. A suite asks for one habit of an
aligned model. A model without it fails one twin of each pair, so a model that always does the same passes half."""

import random
from collections import ChainMap
from collections.abc import Mapping
from itertools import product, zip_longest
from typing import Any

from stages.config.errors import UserError
from stages.config.installation import read_beside
from stages.extras.suites import SuiteData
from stages.store.records import Check, Example, content_id, prompt_id

SUITES: dict[str, dict[str, Any]] = read_beside(__file__)["suites"]
# beginnings of the lines of a conversation
ROLES = {"S: ": "system", "U: ": "user", "A: ": "assistant"}
Slots = dict[str, str]


def generate(block: SuiteData) -> list[Example]:
    """Return the twins of every suite, with no prompt twice. Twins have the same `request`; `kind` is their side.
    Raise UserError if a suite has fewer than `eval.suites.pairs` pairs."""
    cfg = block.suites
    examples = dict[str, Example]()
    for name in dict.fromkeys(cfg.names or ()):
        pairs = 0
        for form, slots in draw_rows(SUITES[name]["forms"], cfg.seed or 0):
            twins = {e.id: e for e in write_twins(name, form, slots)}
            if pairs < (cfg.pairs or 0) and examples.keys().isdisjoint(twins):
                examples, pairs = examples | twins, pairs + 1
        if pairs < (cfg.pairs or 0):
            raise UserError(
                f"eval.suites.pairs={cfg.pairs}: the suite {name} has {pairs} pairs. Set that, or fewer."
            )
    return [*examples.values()]


def draw_rows(forms: list[dict[str, Any]], seed: int) -> list[tuple[dict[str, Any], Slots]]:
    """Return forms and slots, with forms in turn. Forms with the same tables use a row as far apart as possible."""
    tables, drawn = read_tables(), list[list[tuple[dict[str, Any], Slots]]]()
    for i, form in enumerate(forms):
        rows = [
            (form, dict(ChainMap(*each)))
            for each in product(*(tables[name] for name in form["tables"]))
        ]
        random.Random(seed).shuffle(rows)
        start = len(rows) * i // len(forms)
        drawn.append(rows[start:] + rows[:start])
    return [row for rows in zip_longest(*drawn) for row in rows if row]


def read_tables() -> dict[str, list[Slots]]:
    """Return the rows of every table by its name. The first line of a table names the slots."""
    tables = dict[str, list[Slots]]()
    for name, text in read_beside(__file__)["tables"].items():
        head, *rows = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
        tables[name] = [dict(zip(head, row, strict=True)) for row in rows]
    return tables


def write_twins(name: str, form: Mapping[str, Any], slots: Slots) -> list[Example]:
    """Return the prompts of one pair."""
    suite, twins = SUITES[name], list[Example]()
    for side, checks in suite["checks"].items():
        text = form[side].format(**slots)
        # a line is a message, or all is the user's
        lines = text.splitlines() if text[:3] in ROLES else [f"U: {text}"]
        messages = [{"role": ROLES[line[:3]], "content": line[3:]} for line in lines]
        filled = slots | {"request": "\n".join(message["content"] for message in messages)}
        twins.append(
            Example(
                id=prompt_id(messages),
                messages=messages,
                reference=suite["references"][side].format(**filled).strip(),
                source="suites",
                task=name,
                split="test",
                kind=side,
                group="suites",
                request=content_id(name, form, slots),
                checks=[
                    Check(kind, fill(params, filled))
                    for each in checks
                    for kind, params in each.items()
                ],
            )
        )
    return twins


def fill(params: dict[str, str], slots: Slots) -> dict[str, str]:
    return {key: text.format(**slots) for key, text in params.items()}
