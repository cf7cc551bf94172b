"""Blocks that turn judged candidates into training data: demonstrations, pairs, and completions with a label."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import ControlPairs, Strategy, Unfinished
from stages.config.errors import UserError
from stages.config.limits import (
    at_least,
    between,
    computed,
    internal,
    partial_share,
    random_seed,
    share,
)


@dataclass
class Select:
    """Demonstrations for SFT, selected from judged candidates of the base model, and the keys of their sampling."""

    candidates_per_prompt: int = at_least(1)
    temperatures: list[float] = MISSING
    max_new_tokens: int = at_least(1)
    min_score: float = share()
    max_per_task: int = at_least(1)
    max_mended: int = MISSING
    validation_fraction: float = partial_share()


@dataclass
class Pairs:
    """Pairs of a chosen and a rejected completion, made of judged candidates."""

    strategy: Strategy = MISSING
    min_score: float = share()
    min_margin: float = partial_share()
    margin_quantiles: list[float] | None = between(0, 1, None)
    max_length_ratio: float | None = at_least(1)
    max_length_difference: int | None = MISSING
    max_per_prompt: int = at_least(1)
    max_per_task: int | None = at_least(1)
    quality: bool = MISSING
    unfinished: Unfinished = MISSING
    # true: answers are two, even if they differ only in white space at the ends, invisible characters or Unicode form
    exact_texts: bool | None = None
    validation_fraction: float = partial_share()
    seed: int = random_seed()
    key: str = internal("pairs")  # the setting that holds this block: the pipeline sets any other
    # set by the pipeline: for the pairs of `control_pairs`
    control: ControlPairs | None = computed(None)

    def check(self, block: str) -> None:
        """Raise UserError for quantiles of the margin that are not two in order."""
        quantiles = self.margin_quantiles
        if quantiles is not None and (len(quantiles) != 2 or quantiles[0] >= quantiles[1]):
            raise UserError(
                f"{block}.margin_quantiles={quantiles}: give two quantiles in order, as [0.25, 0.75]."
            )


@dataclass
class Unpaired:
    """Completions with a label each. A score from `threshold` on is desirable; preferences need none."""

    threshold: float = share()
    unfinished: Unfinished = MISSING
    validation_fraction: float = partial_share()
