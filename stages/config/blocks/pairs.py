"""Blocks that turn judged candidates into training data: demonstrations, pairs, and completions with a label."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import ControlPairs, Strategy, Unfinished
from stages.config.limits import Limit, between, computed, internal, limited, random_seed, share


@dataclass
class Select:
    """Demonstrations for SFT, selected from judged candidates of the base model, and the keys of their sampling."""

    candidates_per_prompt: int = between(1, 10_000)
    temperatures: list[float] = between(0, 100)
    max_new_tokens: int = between(1, 65_536)
    min_score: float = share()
    max_per_task: int = between(1, 1_000_000)
    max_mended: int = between(0, 1_000_000)
    validation_fraction: float = limited(
        Limit(0, "must be a share from 0 to below 1", high=1, below=True)
    )


@dataclass
class Pairs:
    """Pairs of a chosen and a rejected completion, made of judged candidates."""

    strategy: Strategy = MISSING
    min_score: float = share()
    min_margin: float = limited(
        Limit(0, "must be a difference of two scores, from 0 to below 1", high=1, below=True)
    )
    margin_quantiles: list[float] | None = between(0, 1, None)
    max_length_ratio: float | None = between(1, 1_000_000)
    max_length_difference: int | None = between(0, 1_000_000)
    max_per_prompt: int = between(1, 1_000_000)
    max_per_task: int | None = between(1, 1_000_000)
    quality: bool = MISSING
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(
        Limit(0, "must be a share from 0 to below 1", high=1, below=True)
    )
    seed: int = random_seed()
    key: str = internal("pairs")  # the setting that holds this block: the pipeline sets any other
    # set by the pipeline: for the pairs of `control_pairs`
    control: ControlPairs | None = computed(None)


@dataclass
class Unpaired:
    """Completions with a label, as KTO reads them. A score from `threshold` on is desirable; preferences need none."""

    threshold: float = share()
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(
        Limit(0, "must be a share from 0 to below 1", high=1, below=True)
    )
