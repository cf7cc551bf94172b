"""KTO's rows: single completions with a label, and for each of them a mismatched completion, of another prompt.

KTO compares log-ratios with z, an estimate of the KL divergence from the reference: the mean log-ratio of completions
to prompts that they do not answer. Every row keeps its mismatched completion, which neither the order of the rows nor
the micro-batch changes. (TRL takes the row before, often another answer to the same prompt.)"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.config.errors import UserError
from stages.store.records import Message, Pair, content_id, stream
from stages.store.table_schema import Int32


@dataclass
class UnpairedPreference:
    """A row in TRL's conversational columns for KTO, with its origin and, if sampled, the completion's token ids. A
    truncated completion (`finish_reason` length) is undesirable. `score` is None if preferences give the label.
    `repeats`: the row is held out, and nearly equals a training row."""

    id: str
    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    label: bool
    score: float | None
    labeler: str
    candidate_id: str
    split: str  # train or validation
    completion_token_ids: list[Int32] | None = None
    completion_tokenizer: str | None = None
    finish_reason: str = "stop"
    policy: str | None = None
    repeats: bool = False

    @property
    def completions(self) -> list[list[Message]]:
        """The only completion, in a list, as pairs have two."""
        return [self.completion]


@dataclass
class MismatchedPair(Pair):
    """A row of KTO: `chosen` is the completion that `label` is about, and `rejected` the mismatched one."""

    label: bool = True
    chosen_finish_reason: str = "stop"
    cuts_rejected: bool = True


def stream_pairs(inputs: Mapping[str, Path]) -> Iterator[Pair]:
    """Yield the pairs of the node `pairs`, or the rows of the node `unpaired` as pairs with mismatched completions."""
    if "pairs" in inputs:
        return stream(inputs["pairs"] / "pairs.parquet", Pair)
    return mismatched_pairs(stream(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference))


def mismatched_pairs(rows: Iterable[UnpairedPreference]) -> Iterator[MismatchedPair]:
    """Yield each row with a completion of the same split. In the order of hashes, in a circle, it is the next one of
    another prompt, so all are used about equally often. Raise UserError if a split with rows has a single prompt."""
    by_split = defaultdict[str, list[UnpairedPreference]](list)
    for row in rows:
        by_split[row.split].append(row)
    for split, members in by_split.items():
        if len({row.prompt_id for row in members}) == 1:
            problem = f"KTO needs completions of two prompts, but those of the {split} split all answer one"
            raise UserError(f"{problem}. Add prompts, or change unpaired.validation_fraction.")
        circle = sorted(members, key=lambda row: content_id("mismatched", row.id, row.candidate_id))
        for i, row in enumerate(circle):
            following = (circle[(i + step) % len(circle)] for step in range(1, len(circle)))
            other = next(each for each in following if each.prompt_id != row.prompt_id)
            yield MismatchedPair(
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
                repeats=row.repeats,
                label=row.label,
            )
