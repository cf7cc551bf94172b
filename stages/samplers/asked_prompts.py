"""The prompts that a round asks, and those that its further draws ask again."""

from collections.abc import Iterable
from pathlib import Path

from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.errors import UserError
from stages.store.judged_pool import count_right
from stages.store.records import Example, content_id


def select_round(cfg: Sample | CandidateFile, examples: Iterable[Example]) -> list[Example]:
    """Return the prompts of a round, at most `sample.prompts` of them: `sample.prompts_per_round` that no other round
    asks, else a fixed share of all prompts. Both go by hashes of the prompts.

    Raises:
        UserError: if earlier rounds leave fewer than `sample.prompts_per_round` prompts.
    """
    prompts = sorted(examples, key=lambda e: content_id(e.id))
    if (size := cfg.prompts_per_round) is None:
        return [e for e in prompts if int(e.id, 16) % cfg.rounds == cfg.round][: cfg.prompts]
    own = prompts[size * cfg.round : size * (cfg.round + 1)]
    if len(own) < size:
        raise UserError(
            f"sample.prompts_per_round={size}: round {cfg.round + 1} has {len(own)} of {len(prompts)} prompts left. "
            "Lower it or rounds, or add prompts."
        )
    return own[: cfg.prompts]


def select_unpaired(examples: Iterable[Example], judged: Path, right_from: float) -> list[Example]:
    """Return the prompts of a label node that have candidates, of which none is right. Prompts without candidates are
    too long for the model, or the endpoint failed on all of them."""
    prompts = {e.id: e for e in examples}
    return [prompts[prompt.id] for prompt, right, drawn in count_right(judged, right_from) if drawn and not right]
