"""Measure precision and recall of the audit codes: `python -m tests.bench.audit`.

1. Rows of the original Alpaca that were sorted into classes of error by hand-written rules: precision and recall of
   the code for each class, on the half of the rows that no code was tuned on.
2. Evaluation prompts that are found unchanged, and with one word changed.

Needs the shared data beside the checkout; takes about a minute.
"""

import gzip
import hashlib
import json
import logging
import random
from collections import Counter
from typing import Any

from stages.curation.audit.codes import ALONE
from stages.curation.audit.overlap import HeldOut
from tests.helpers import DATA

CLASSES = {
    "one_char_output": "one_character",
    "no_output_marker": "no_answer",
    "output_echoes_prompt": "echo",
    "merged_instruction": "merged",
    "ai_disclaimer": "boilerplate",
    "noinput_marker": "input_marker",
    "url_input": "needs_link",
    "attachment_input": "needs_attachment",
    "image_generation_request": "asks_for_picture",
    "control_chars": "damaged",
}


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def was_tuned_on(row: dict[str, Any]) -> bool:
    return hashlib.sha256(row["instruction"].encode()).digest()[0] < 128


def tell_codes() -> None:
    """Rows with an empty answer are left out: no format lets them through."""
    hits = Counter[str]()
    classified = Counter[str]()
    coded = Counter[str]()
    for row in rows("dirty/alpaca_dirty_classes.jsonl.gz"):
        if was_tuned_on(row) or not row["output"].strip():
            continue
        request = "\n\n".join(filter(None, (row["instruction"], row["input"].strip())))
        for name, code in CLASSES.items():
            is_classified = name in row["classes"]
            is_coded = ALONE[code](request, row["output"]) is not None
            classified[code] += is_classified
            coded[code] += is_coded
            hits[code] += is_classified and is_coded
    for code in CLASSES.values():
        precision = hits[code] / max(1, coded[code])
        recall = hits[code] / max(1, classified[code])
        logging.info("%-18s precision %.0f%%, recall %.0f%%", code, 100 * precision, 100 * recall)


def tell_contaminated() -> None:
    draw = random.Random(0)
    held_out = HeldOut()
    table = rows("preferences/alpaca_eval_candidates_shared.jsonl.gz")
    prompts = [row["instruction"] for row in table]
    for prompt in prompts:
        held_out.add(prompt, "")
    unchanged = 0
    changed = 0
    for prompt in prompts:
        words = prompt.split()
        words[draw.randrange(len(words))] = "otherwise"
        unchanged += bool(held_out.find_in(prompt))
        changed += bool(held_out.find_in(" ".join(words)))
    message = "of %d evaluation prompts %d are found unchanged, %d with one word changed"
    logging.info(message, len(prompts), unchanged, changed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tell_codes()
    tell_contaminated()
