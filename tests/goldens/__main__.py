"""Record what the project computes, or compare it with the record: `python -m tests.goldens record|check [PART …]`.

The parts are `configurations`, `fingerprints`, `rows`, `refusals` and `chains`; without one, all of them. Each has a file
of this folder, PART.json, with a value for every command. `check` computes the recorded commands again and prints what
differs. It exits with 1 if anything does, a command that is not recorded or recorded but gone included, and with 3 if a
part has compared nothing. `record` writes the files anew: a change that moves a value on purpose does so in the same
commit, which says what moved and why. No record has the number of a stage, so a raised number moves nothing.
"""

import gc
import logging
import sys

import torch

from stages.hardware import process
from tests.goldens import chains, configurations, fingerprints, records, refusals, rows

PARTS: dict[str, records.Part] = {
    part.name: part
    for part in (
        configurations.PART,
        fingerprints.PART,
        rows.PART,
        refusals.PART,
        chains.PART,
    )
}
EQUAL, DIFFERENT, NOTHING_COMPARED = 0, 1, 3  # exit codes
SHOWN = 100  # differences


def check(parts: list[str]) -> int:
    """Compare these parts with their records, and return the exit code."""
    lines = list[str]()
    blank = list[str]()
    has_differences = False
    for part in parts:
        comparison = PARTS[part].check()
        counts = part, comparison.compared, len(comparison.differences)
        logging.info("%s: %d commands compared, %d differences", *counts)
        if comparison.left_out:
            logging.info("%s: %s", part, comparison.left_out)
        if comparison.compared == 0:
            blank.append(part)
        elif comparison.differences:
            has_differences = True
        lines += [f"{part} | {line}" for line in comparison.differences]
    for line in lines[:SHOWN]:
        logging.info("%s", line)
    if blank:
        logging.info("nothing was compared of: %s", ", ".join(blank))
    if has_differences:
        return DIFFERENT
    if blank:
        return NOTHING_COMPARED
    logging.info("nothing differs")
    return EQUAL


def main(action: str, parts: list[str]) -> int:
    """Return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    process.prepare()
    torch.set_num_threads(1)  # sums of several threads differ by their number
    gc.freeze()  # every node runs the garbage collector
    if action == "check":
        return check(parts)
    for part in parts:
        PARTS[part].record()
    return 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record" | "check" as action, *parts] if {*parts} <= {*PARTS}:
            sys.exit(main(action, parts or [*PARTS]))
    sys.exit(__doc__)
