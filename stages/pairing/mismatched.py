"""The rows of KTO as pairs for the reference: every completion, and one of another prompt.

KTO compares log-ratios with z, an estimate of the KL divergence from the reference: the mean log-ratio of completions
to prompts that they do not answer. Every row keeps its mismatched completion, which neither the order of the rows nor
the micro-batch changes. (TRL takes the row before, often another answer to the same prompt.)
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stages.config.errors import UserError
from stages.store.records import Pair, UnpairedPreference, content_id


@dataclass
class MismatchedPair(Pair):
    """A row of KTO: `chosen` is the completion that it labels, and `rejected` the mismatched one."""

    chosen_finish_reason: str = "stop"


def mismatched_pairs(rows: Iterable[UnpairedPreference]) -> Iterator[MismatchedPair]:
    """Yield each row with a completion of the same split. In the order of hashes, in a circle, it is the next one of
    another prompt, so that completions are used about equally often.

    Raises:
        UserError: if a split with rows has a single prompt.
    """
    by_split = defaultdict[str, list[UnpairedPreference]](list)
    for row in rows:
        by_split[row.split].append(row)
    for split, members in by_split.items():
        if len({row.prompt_id for row in members}) == 1:
            raise UserError(
                f"KTO needs completions of two prompts, but those of the {split} split all answer one. Add prompts, "
                "or change unpaired.validation_fraction."
            )
        circle = sorted(members, key=lambda row: content_id("mismatched", row.id, row.candidate_id))
        for i, row in enumerate(circle):
            others = (circle[(i + step) % len(circle)] for step in range(1, len(circle)))
            yield join(row, next(other for other in others if other.prompt_id != row.prompt_id))


def join(row: UnpairedPreference, other: UnpairedPreference) -> MismatchedPair:
    return MismatchedPair(
        id=row.id,
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=row.completion,
        rejected=other.completion,
        margin=None,
        labeler=row.labeler,
        strategy="mismatched",
        chosen_id=row.candidate_id,
        rejected_id=other.candidate_id,
        split=row.split,
        chosen_token_ids=row.completion_token_ids,
        rejected_token_ids=other.completion_token_ids,
        chosen_tokenizer=row.completion_tokenizer,
        rejected_tokenizer=other.completion_tokenizer,
        rejected_finish_reason=other.finish_reason,
        chosen_finish_reason=row.finish_reason,
    )
