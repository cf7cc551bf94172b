"""Tables of outcomes that are drawn from known truths: families whose effects differ, prompts that one of two models
passes and the other does not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A simulated truth: prompts per family; the policy's mean gain over SFT; the sd of the gain between families;
    the share of prompts that only one of the models passes without a gain; SFT's pass rate."""

    name: str
    sizes: tuple[int, ...]
    gain: float = 0.0
    family: float = 0.0
    discordant: float = 0.075
    rate: float = 0.5

    def families(self) -> list[str]:
        return [str(i) for i, size in enumerate(self.sizes) for _ in range(size)]

    def table(self, rng: np.random.Generator) -> tuple[Array, dict[str, float]]:
        """Draw outcomes, shape (prompts, 2) for SFT and policy, and return them with the true gains."""
        effects = self.gain + rng.normal(0, self.family, len(self.sizes))
        sizes = np.array(self.sizes)
        of_prompt = np.repeat(effects, sizes)
        gained = np.minimum(self.discordant / 2 + np.maximum(of_prompt, 0), 1)
        lost = np.minimum(self.discordant / 2 + np.maximum(-of_prompt, 0), 1 - gained)
        both = np.clip(self.rate - lost, 0, 1 - gained - lost)
        luck = rng.random(sizes.sum())
        sft = (luck < lost) | ((luck >= lost + gained) & (luck < lost + gained + both))
        policy = (luck >= lost) & (luck < lost + gained + both)
        return np.stack([sft, policy], 1).astype(float), {
            "these": float((gained - lost).mean()),
            "like": self.gain,
        }


UNEQUAL = (5, 8, 10, *range(12, 50, 2), 50, 55, 60, 65, 70, 80)
CASES = (
    Case("28 × 28, no effect", (28,) * 28),
    Case("28 × 28, +3 points, family sd 2", (28,) * 28, 0.03, 0.02),
    Case("28 families of 5 to 80, +3 points, sd 3", UNEQUAL, 0.03, 0.03),
    Case("40 × 5 at 5%, no effect", (5,) * 40, discordant=0.06, rate=0.05),
    Case("5 × 60, +3 points, sd 3", (60,) * 5, 0.03, 0.03),
)


@dataclass(frozen=True)
class Sweep:
    """Settings held against SFT on so many families of so many prompts: what each gains, and as in `Case`."""

    families: int
    prompts: int
    gains: tuple[float, ...]
    family: float = 0.03
    discordant: float = 0.075

    def table(self, rng: np.random.Generator) -> Array:
        """Outcomes (prompts, [SFT, *settings]): every setting gains and loses prompts of its own."""
        rows = self.families * self.prompts
        effects = np.array(self.gains) + rng.normal(
            0, self.family, (self.families, len(self.gains))
        )
        of_prompt = np.repeat(effects, self.prompts, 0)
        sft = rng.random((rows, 1)) < 0.5
        turned = rng.random(of_prompt.shape)
        lost = (self.discordant / 2 + np.maximum(-of_prompt, 0)) / 0.5
        gained = (self.discordant / 2 + np.maximum(of_prompt, 0)) / 0.5
        settings = np.where(sft, turned >= lost, turned < gained)
        return np.concatenate([sft, settings], 1).astype(float)
