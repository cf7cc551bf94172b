"""How often does an examination call a finding certain on a sound training? `python -m tests.bench.sound_trainings [COUNT]`

Plain loops train COUNT (200) models of 0.1M from a start that answers: SFT of all weights, of norms or MLPs
alone, and DPO, at rates and numbers of steps that are drawn. A training is sound if it did not raise the held-out loss.
About 5 CPU-seconds a training."""

import logging
import random
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from stages.evaluation.examined.faults import examine
from tests.evaluation.planted_models import Planted

log = logging.getLogger(__name__)

COUNT = 200
KINDS = ("sft", "norms", "mlp", "dpo")


def train(planted: Planted, number: int) -> Path:
    draw = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    name = f"{kind}_{number}"
    steps = draw.choice([5, 20, 60, 120])
    rate = 10 ** draw.uniform(-5, -2.3)
    if kind == "dpo":
        return planted.dpo(
            name, steps=min(steps, 60), rate=rate / 3, beta=draw.choice([0.05, 0.1, 0.5])
        )
    part = {"sft": "", "norms": "norm", "mlp": "mlp"}[kind]
    return planted.sft(
        name, planted.start, steps=steps, rate=rate, trains=lambda parameter: part in parameter
    )


def main(count: int) -> None:
    certain, faulted, differing = Counter[str](), Counter[str](), Counter[str]()
    sound = 0
    with TemporaryDirectory() as folder:
        planted = Planted(Path(folder))
        for number in range(count):
            examined = planted.examined(train(planted, number))
            read = examined.readings
            is_dpo = KINDS[number % len(KINDS)] == "dpo"
            assert examined.results.learnt
            learnt = examined.results.learnt.ratio["policy"].mean
            # of DPO the loss falls where pairs are in order
            is_sound = (
                learnt >= 0.5 if is_dpo else fmean(read.after.nats) >= fmean(read.before.nats)
            )
            if not is_sound:
                continue
            sound += 1
            for finding in examine(examined).findings:
                counts = certain if finding.certain else faulted if finding.is_fault else differing
                counts[finding.name] += 1
                if finding.is_fault:
                    log.info(
                        "%d %s, certain: %s: %s",
                        number,
                        finding.name,
                        finding.certain,
                        finding.seen,
                    )
    log.info("%d of %d trainings were sound.", sound, count)
    for title, counts in (("certain", certain), ("faults", faulted), ("differences", differing)):
        log.info("%s: %s", title, dict(counts))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
