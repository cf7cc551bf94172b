"""The prompts that a round asks, and those that its further draws ask again."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from stages.config.blocks.sampling import CandidateFile, Sample
from stages.config.errors import UserError
from stages.store.judged_pool import count_right
from stages.store.records import Example, content_id


def select_round(
    cfg: Sample | CandidateFile, examples: Iterable[Example], earlier: Sequence[Path] = ()
) -> list[Example]:
    """Return the prompts of a round, at most `sample.prompts` of them: `sample.prompts_per_round` that no other round
    asks, else a fixed share of all prompts. Both go by hashes of the prompts, and the former also by the outcomes in
    the label nodes of `earlier` rounds, if there are any.
    Raise UserError if earlier rounds leave fewer than `sample.prompts_per_round` prompts."""
    prompts = sorted(examples, key=lambda e: content_id(e.id))
    if (size := cfg.prompts_per_round) is None:
        return [e for e in prompts if int(e.id, 16) % cfg.rounds == cfg.round][: cfg.prompts]
    own = prompts[size * cfg.round : size * (cfg.round + 1)]
    if isinstance(cfg, Sample) and cfg.right_from is not None:
        own = order_by_outcomes(prompts, earlier, cfg.right_from)[:size]
    if len(own) < size:
        left = f"round {cfg.round + 1} has {len(own)} of {len(prompts)} prompts left"
        raise UserError(
            f"sample.prompts_per_round={size}: {left}. Lower it or rounds, or add prompts."
        )
    return own[: cfg.prompts]


def order_by_outcomes(
    prompts: Iterable[Example], earlier: Sequence[Path], right_from: float
) -> list[Example]:
    """Return the prompts that the label nodes of earlier rounds do not have. The start of the list, of any length, has
    of each task a number in proportion to its prompts here times its share of mixed outcomes: of prompts with right
    and wrong candidates among its earlier ones. Add-one smoothing keeps every share above 0. Of the kinds of
    constraints in one prompt, the mean share counts."""
    counts, mixed, known_ids = Counter[str](), Counter[str](), set[str]()
    for judged in earlier:
        for prompt, right, drawn in count_right(judged, right_from):
            known_ids.add(prompt.id)
            counts.update(prompt.tasks)
            mixed.update(prompt.tasks if 0 < right < drawn else ())
    by_task = defaultdict[str, list[Example]](list)
    for prompt in prompts:
        if prompt.id not in known_ids:
            by_task[prompt.task].append(prompt)
    placed = list[tuple[float, Example]]()
    for task, rest in by_task.items():
        share = fmean((mixed[name] + 1) / (counts[name] + 2) for name in rest[0].tasks)
        # so that not every task begins at the same place
        start = int(content_id(task, len(earlier)), 16) / 2**64
        placed += [((start + i) / (share * len(rest)), prompt) for i, prompt in enumerate(rest)]
    return [prompt for _, prompt in sorted(placed, key=lambda item: item[0])]


def select_unpaired(examples: Iterable[Example], judged: Path, right_from: float) -> list[Example]:
    """Return the prompts of a label node that have candidates, of which none is right. Prompts without candidates are
    too long for the model, or the endpoint failed on all of them."""
    prompts = {e.id: e for e in examples}
    return [
        prompts[prompt.id]
        for prompt, right, drawn in count_right(judged, right_from)
        if drawn and not right
    ]
