"""What judged candidates become: demonstrations and pairs."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import Strategy, Unfinished
from stages.config.limits import Limit, between, limited, random_seed, setting_name, share


@dataclass
class Select:
    """Which judged candidates become examples, and how those of the base are drawn."""

    candidates_per_prompt: int = between(1, 10_000)
    temperatures: list[float] = between(0, 100)
    max_new_tokens: int = between(1, 65_536)
    min_score: float = share()
    max_per_task: int = between(1, 1_000_000)
    max_mended: int = between(0, 1_000_000)
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))


@dataclass
class Pairs:
    strategy: Strategy = MISSING
    min_score: float = share()
    min_margin: float = limited(Limit(0, "is a difference of two scores: from 0 to below 1", high=1, below=True))
    margin_quantiles: list[float] | None = between(0, 1, None)
    max_length_ratio: float | None = between(1, 1_000_000)
    max_per_prompt: int = between(1, 1_000_000)
    max_per_task: int | None = between(1, 1_000_000)
    quality: bool = MISSING
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))
    seed: int = random_seed()
    of: str | None = setting_name()

    @property
    def key(self) -> str:
        """What the block is called on the command line."""
        return self.of or "pairs"


@dataclass
class Unpaired:
    """KTO's rows: from which score on a completion is desirable. Preferences need no threshold."""

    threshold: float = share()
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))
