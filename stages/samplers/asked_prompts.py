"""The prompts that a round asks."""

from collections.abc import Iterable

from stages.config.blocks.sampling import Sample
from stages.config.errors import UserError
from stages.store.records import Example, content_id


def select_round(cfg: Sample, examples: Iterable[Example]) -> list[Example]:
    """Return the prompts of a round, at most `sample.prompts` of them: `sample.prompts_per_round` that no other round
    asks, else a fixed share of all prompts. Both go by hashes of the prompts.
    Raise UserError if earlier rounds leave fewer than `sample.prompts_per_round` prompts."""
    prompts = sorted(examples, key=hash_of)
    size = cfg.prompts_per_round
    if size is None:
        own = [e for e in prompts if int(e.id, 16) % cfg.rounds == cfg.round]
    else:
        own = prompts[size * cfg.round : size * (cfg.round + 1)]
        if len(own) < size:
            left = f"round {cfg.round + 1} has {len(own)} of {len(prompts)} prompts left"
            raise UserError(
                f"sample.prompts_per_round={size}: {left}. Lower it or rounds, or add prompts."
            )
    return own[: cfg.prompts]


def hash_of(example: Example) -> str:
    return content_id(example.id)
