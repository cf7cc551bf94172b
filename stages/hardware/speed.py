"""How many seconds a node takes: arithmetic on its tokens, corrected by what ran on this machine. Without torch.

The arithmetic is a guess for machines of a kind, from the table below. It is multiplied by how many times as long as
guessed the finished node took that is most alike; of the same stage two nodes that differ enough in size tell what is
taken whatever the size, and what per token. `python -m tests.bench.plan` holds both against a store, and prints
what the table would have to say for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

# Operations per second in a stage's passes: of a CPU's core (with AVX512-BF16 and AMX), by precision; and of a GPU, on
# which nothing has been measured.
GUESSED = {
    "sft": ({"bf16": 157e9, "fp32": 92e9}, 150e12),
    "dpo": ({"bf16": 215e9, "fp32": 158e9}, 100e12),
    "reward": ({"bf16": 215e9, "fp32": 158e9}, 100e12),
    "reference": ({"bf16": 185e9, "fp32": 103e9}, 150e12),
    "sample": ({"bf16": 660e9, "fp32": 325e9}, 100e12),
    "answer": ({"bf16": 430e9, "fp32": 260e9}, 100e12),
    "label": ({"bf16": 250e9, "fp32": 91e9}, 150e12),  # by a reward model
    "eval": ({"bf16": 108e9, "fp32": 84e9}, 20e12),
}
# What a stage takes whatever its size: seconds, and seconds per parameter of a model that it loads and saves.
FIXED = {
    "base": (0.1, 9e-8),
    "sft": (1.0, 2e-8),
    "dpo": (0.4, 2e-8),
    "reward": (0.4, 2e-8),
    "report": (0.5, 0.0),
    "source": (0.3, 0.0),
    "data": (0.3, 0.0),
}
LOADING = 0.05, 0.5e-8  # of any other
TRAINED, DRAWN = 3, 6  # a token that is trained on, or drawn, costs as much as so many that are only read
ALIKE = {"sft": "train", "dpo": "train", "reward": "train", "sample": "draw", "answer": "draw"}
ALIKE |= {"reference": "read", "label": "read", "eval": "read"}
LATEST = 5  # nodes that tell, of those that are equally alike: an early one ran other code
APART = 2.0  # times the passes, between two nodes that tell what is fixed from what is per token
COMPARABLE = 10.0  # times the parameters: what is larger or smaller tells nothing


class Known(IntEnum):
    """How a time is known: as the same stage took it here, from something else that ran here, or not."""

    measured = 0
    scaled = 1
    guessed = 2


@dataclass(frozen=True)
class Task:
    """What a node's time depends on. `way`: which sampler, adapter or forward. `passes`: tokens that go through the
    model forward, or what costs as much. `processor`: as `machine.processor` names it; None where nobody noted it.
    `devices`: cores, or GPUs."""

    stage: str
    precision: str
    way: str
    base: str
    parameters: float
    passes: float
    processor: str | None
    devices: int
    on_gpu: bool

    @property
    def guess(self) -> float:
        """Seconds, on a machine of this kind."""
        return self.fixed + (self.operations / self.speed if self.passes else 0.0)

    @property
    def fixed(self) -> float:
        seconds, per_parameter = FIXED.get(self.stage, LOADING)
        return seconds + per_parameter * self.parameters

    @property
    def operations(self) -> float:
        return 2 * self.parameters * self.passes

    @property
    def speed(self) -> float:
        cpu, gpu = GUESSED[self.stage]
        return self.devices * (gpu if self.on_gpu else cpu[self.precision])


@dataclass(frozen=True)
class Ran:
    """A node that is finished: what it was, and its seconds."""

    task: Task
    seconds: float

    @property
    def slowness(self) -> float:
        """Its seconds as a multiple of what would have been guessed."""
        return self.seconds / self.task.guess


def expected(task: Task, ran: Sequence[Ran]) -> tuple[float, Known]:
    """Seconds of a node, and how they are known; `ran` has the oldest first. Of nodes that are equally alike the one
    tells that was fastest for what it did: other work on a machine, or a kill, makes a node slower, never faster."""
    near = [(distance, r) for r in ran if (distance := differences(task, r.task)) is not None]
    if not near:
        return task.guess, Known.guessed
    nearest = min(distance for distance, _ in near)
    telling = sorted([r for distance, r in near if distance == nearest][-LATEST:], key=lambda r: r.slowness)
    known = Known.scaled if any(nearest) else Known.measured
    if known is Known.measured and (line := through(telling)):
        fixed, per_pass = line
        return fixed + per_pass * task.passes, known
    return task.guess * telling[0].slowness, known


def through(ran: Sequence[Ran]) -> tuple[float, float] | None:
    """Seconds whatever the size, and seconds per pass, by the fastest of the small and of the large nodes, fastest
    first; None where they do not differ enough to tell."""
    most = max(r.task.passes for r in ran)
    large = next(r for r in ran if r.task.passes * APART >= most)
    small = next((r for r in ran if r.task.passes * APART < most), None)
    if small is None:
        return None
    per_pass = (large.seconds - small.seconds) / (large.task.passes - small.task.passes)
    fixed = small.seconds - per_pass * small.task.passes
    return (fixed, per_pass) if per_pass > 0 and fixed >= 0 else None


def differences(task: Task, other: Task) -> tuple[bool, ...] | None:
    """In what two nodes differ, the weightiest first; None where one tells nothing of the other."""
    if other.processor not in (task.processor, None):
        return None
    if bool(task.passes) is not bool(other.passes) or (task.stage != other.stage and not task.passes):
        return None
    if other.parameters and not 1 / COMPARABLE <= task.parameters / other.parameters <= COMPARABLE:
        return None
    return (
        ALIKE.get(task.stage) != ALIKE.get(other.stage),
        task.precision != other.precision,
        task.stage != other.stage,
        task.way != other.way,
        task.base != other.base,
        task.processor != other.processor,
    )
