"""Measure precision and recall of the audit codes: `python -m tests.bench.audit [tuned]`.

1. Rows of the original Alpaca that were sorted into classes of error by hand-written rules: precision and recall of
   the code for each class. Codes were tuned on one half of the rows, told apart by a hash of the instruction; the
   other half is reported (`tuned` reports the first).
2. Rows that people revised: the share of originals with a code, and of their revisions.
3. Errors that are planted in clean rows: how many are found, and how many clean rows have the code before.
4. Evaluation prompts in other text, changed in several ways, and texts with one word changed.

Needs the shared data beside the checkout; takes about a minute.
"""

import gzip
import hashlib
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from stages.curation.audit.codes import ALONE
from stages.curation.audit.overlap import HeldOut, SeenTexts, sketch
from tests.helpers import DATA

log = logging.getLogger(__name__)

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


def rows(name: str, tuned: bool | None = None) -> list[dict[str, Any]]:
    """The rows of a file, or of its tuned or reported half."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    return [row for row in read if tuned is None or is_tuned(row) == tuned]


def is_tuned(row: dict[str, Any]) -> bool:
    return hashlib.sha256(row["instruction"].encode()).digest()[0] < 128


def request(row: dict[str, Any]) -> str:
    return "\n\n".join(filter(None, (row["instruction"], row["input"].strip())))


def codes(request: str, answer: str) -> set[str]:
    return {name for name, find in ALONE.items() if find(request, answer)}


def by_class(tuned: bool) -> Iterator[str]:
    """Rows with an empty answer are left out: no format lets them through."""
    labelled_rows = [
        row for row in rows("dirty/alpaca_dirty_classes.jsonl.gz", tuned) if row["output"].strip()
    ]
    codes_by_row = [codes(request(row), row["output"]) for row in labelled_rows]
    for name, code in CLASSES.items():
        pairs = Counter(
            (name in row["classes"], code in row_codes)
            for row, row_codes in zip(labelled_rows, codes_by_row, strict=True)
        )
        right, missed, false = pairs[True, True], pairs[True, False], pairs[False, True]
        yield (
            f"{name:<26}{code:<18}{right:>6}{missed:>8}{false:>7}"
            f"{share(right, right + false):>11}{share(right, right + missed):>9}"
        )


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def revised(tuned: bool) -> Iterator[str]:
    both = rows("dirty/alpaca_dirty_pairs.jsonl.gz", tuned)
    before, after, mended = Counter[str](), Counter[str](), Counter[str]()
    for row in both:
        was = codes(request(row), row["output_original"])
        now = {"instruction": row["instruction_cleaned"], "input": row["input_cleaned"]}
        row_codes = codes(request(now), row["output_cleaned"])
        before, after, mended = (
            before + Counter(was),
            after + Counter(row_codes),
            mended + Counter(was - row_codes),
        )
    for code, count in before.most_common():
        yield f"{code:<18}{count:>10}{after[code]:>9}{mended[code]:>8}{share(mended[code], count):>6} of {len(both)}"


def looped(text: str, rng: random.Random) -> str:
    return f"{text} " + "And then it goes on as it went on before. " * 4


def cut(text: str, rng: random.Random) -> str:
    words = text.split()
    return " ".join(words[: rng.randint(len(words) // 2, len(words) - 2)])


def misread(text: str, rng: random.Random) -> str:
    return (text + " – “naïve” café").encode().decode("cp1252", errors="replace")


def wrong_result(text: str, rng: random.Random) -> str:
    return re.sub(r"=(\d+)\b", lambda match: f"={int(match[1]) + 1}", text)


PLANTED: dict[str, Callable[[str, random.Random], str]] = {
    "repetition": looped,
    "unfinished": cut,
    "damaged": misread,
    "wrong_sum": wrong_result,
    "placeholder": lambda text, rng: f"Dear [Name of client],\n\n{text}",
    "boilerplate": lambda text, rng: f"As an AI language model, I have no feelings. {text}",
    "secret": lambda text, rng: f"{text}\nghp_{''.join(rng.choices('abcXYZ0189', k=36))}",
}


def planted(tuned: bool) -> Iterator[str]:
    """In answers of the cleaned Alpaca of 30 words and more; sums in those of GSM8K, without their annotations."""
    rng = random.Random(0)
    clean = [
        (request(row), row["output"])
        for row in rows("sft/alpaca_cleaned_first1000.jsonl.gz", tuned)
    ]
    with gzip.open(DATA / "benchmarks/gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        solved = [json.loads(line) for line in file]
    sums = [(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in solved[tuned::2]]
    for code, change in PLANTED.items():
        originals = (
            sums if code == "wrong_sum" else [(q, a) for q, a in clean if len(a.split()) >= 30]
        )
        changed = [(q, change(a, rng)) for q, a in originals]
        changed = [new for new, old in zip(changed, originals, strict=True) if new != old]
        detected = sum(ALONE[code](*row) is not None for row in changed)
        false = sum(ALONE[code](*row) is not None for row in originals)
        found_share = share(detected, len(changed))
        yield f"{code:<18}{detected:>6} of {len(changed):<6}{found_share:>5}{false:>8} of {len(originals)}"


def edited(text: str, rng: random.Random, times: int = 1) -> str:
    words = text.split()
    for _ in range(times):
        words[rng.randrange(len(words))] = rng.choice(["otherwise", "perhaps", "something"])
    return " ".join(words)


def evaluation() -> Iterator[str]:
    rng, held_out_prompts, seen = random.Random(0), HeldOut(), SeenTexts()
    prompts = [
        row["instruction"] for row in rows("preferences/alpaca_eval_candidates_shared.jsonl.gz")
    ]
    for prompt in prompts:
        held_out_prompts.add(prompt, "")
    for name, change in {
        "as they are": str,
        "in capitals": str.upper,
        "among other words": lambda prompt: (
            f"Answer this as well as you can: {prompt} Give reasons for it."
        ),
        "one word changed": lambda prompt: edited(prompt, rng),
        "two words changed": lambda prompt: edited(prompt, rng, 2),
    }.items():
        recognised = sum(bool(held_out_prompts.find_in(change(p))) for p in prompts)
        yield f"evaluation prompts, {name:<20}{recognised} of {len(prompts)}"
    texts = [f"{request(row)}\n\n{row['output']}" for row in rows("sft/alpaca_8k.jsonl.gz")[:2000]]
    for text in texts:
        seen.add(sketch(text), text)
    near = sum(bool(seen.find_nearest(sketch(edited(text, rng)))) for text in texts)
    yield f"rows, one word changed, near their own  {near} of {len(texts)}"


def main(tuned: bool) -> None:
    log.info(
        "%-26s%-18s%6s%8s%7s%11s%9s",
        "class",
        "code",
        "right",
        "missed",
        "false",
        "precision",
        "recall",
    )
    for line in by_class(tuned):
        log.info("%s", line)
    log.info("\n%-18s%10s%9s%8s", "revised by people", "originals", "revised", "mended")
    for line in revised(tuned):
        log.info("%s", line)
    log.info("\n%-18s%-21s%s", "planted", "found", "in clean rows")
    for line in planted(tuned):
        log.info("%s", line)
    log.info("")
    for line in evaluation():
        log.info("%s", line)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:] == ["tuned"])
