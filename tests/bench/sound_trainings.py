"""How often does an examination call a finding certain on a sound training?
`python -m tests.bench.sound_trainings [--count COUNT] [--first NUMBER]`

Plain loops train COUNT (200) models of two sizes (0.1M and 0.3M) from starts that answer: SFT of all weights, of norms or
MLPs alone, and by LoRA; DPO and KTO of all weights and by LoRA, at rates and numbers of steps that are drawn. A training is
sound if it did not raise the held-out loss. About 5 CPU-seconds a training; each has its number, so that several processes
can share the work. A line is written as each is examined."""

import argparse
import logging
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from stages.config.blocks.models import RandomInit
from stages.extras.examine.findings.faults import examine
from stages.extras.examine.findings.finding import Examination
from stages.extras.examine.findings.sides import Examined
from tests.extras.examine.planted_models import Planted

log = logging.getLogger(__name__)

COUNT = 200
LARGER = RandomInit(hidden_size=96, layers=3, heads=2, vocab_size=400, seed=1)
# by kind, the part of the parameters' names that is trained
SFT = {"sft": "", "norms": "norm", "mlp": "mlp", "sft_lora": ""}
PREFERENCES = ("dpo", "kto", "dpo_lora", "kto_lora")
KINDS = (*SFT, *PREFERENCES)


def kind_of(number: int) -> str:
    return KINDS[number % len(KINDS)]


def train(planted: Planted, number: int) -> Path:
    """Train the model of a number. The same number draws the same settings."""
    draw = random.Random(number)
    kind = kind_of(number)
    name = f"{kind}_{number}"
    steps = draw.choice([5, 20, 60, 120])
    rate = 10 ** draw.uniform(-5, -2.3)
    rank = draw.choice([2, 8]) if kind.endswith("lora") else None
    if kind in PREFERENCES:
        beta = draw.choice([0.05, 0.1, 0.5])
        in_pairs = kind.startswith("dpo")
        return planted.dpo(name, min(steps, 60), rate / 3, beta, rank=rank, in_pairs=in_pairs)

    def trains(parameter: str) -> bool:
        return SFT[kind] in parameter

    return planted.sft(name, planted.start, steps=steps, rate=rate, trains=trains, rank=rank)


def is_sound(examined: Examined, kind: str) -> bool:
    """Return whether a training did not raise the held-out loss. That of preferences falls where pairs are in order."""
    if kind in PREFERENCES:
        assert examined.results.learnt
        return examined.results.learnt.ratio["policy"].mean >= 0.5
    read = examined.readings
    assert read
    return fmean(read.after.nats) >= fmean(read.before.nats)


def report(number: int, examination: Examination, counts: dict[str, Counter[str]]) -> None:
    """Count the findings of a sound training by name, and log them."""
    names = list[str]()
    for finding in examination.findings:
        word = finding.claim.says("finding")
        counts.setdefault(word, Counter())[finding.title] += 1
        names.append(f"{word}: {finding.title}")
        if finding.is_fault:
            log.info("%d %s: %s: %s", number, kind_of(number), word, finding.seen)
    log.info("%d %s: %s", number, kind_of(number), "; ".join(names) or "nothing")


def main(count: int, first: int) -> None:
    counts = dict[str, Counter[str]]()
    sound, certain = 0, 0
    with TemporaryDirectory() as folder:
        places = [Planted(Path(folder) / "small"), Planted(Path(folder) / "larger", LARGER)]
        for number in range(first, first + count):
            planted = places[number // len(KINDS) % len(places)]
            trained = train(planted, number)
            examined = planted.examined(trained)
            if not is_sound(examined, kind_of(number)):
                log.info("%d %s: not sound", number, kind_of(number))
                continue
            examination = examine(examined)
            shutil.rmtree(trained)
            sound += 1
            certain += any(finding.certain for finding in examination.findings)
            report(number, examination, counts)
    log.info(
        "%d of %d trainings were sound, %d of these have a certain fault.", sound, count, certain
    )
    for word, of_word in counts.items():
        log.info("%s: %s", word, dict(of_word))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.count, arguments.first)
