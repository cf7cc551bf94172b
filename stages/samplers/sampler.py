"""Samplers: interchangeable ways to complete prompts. `hf` runs transformers in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stages.store.records import Message, content_id


@dataclass
class Request:
    """A prompt to be completed `len(temperatures)` times; temperature 0 is greedy.

    `id` and `seed` decide what is drawn, together with the candidate's index and the step: never the batch, the
    order, or the shard that a prompt falls into.
    """

    id: str
    messages: list[Message]
    token_ids: list[int]
    temperatures: list[float]
    seed: int

    def seed_of(self, candidate: int) -> int:
        """63 bits from the content of the request."""
        return int(content_id(self.id, self.seed, candidate, self.temperatures[candidate]), 16) >> 1


@dataclass
class Completion:
    """What was generated, end of turn included, and its log-prob at temperature 1, summed over the tokens."""

    token_ids: list[int]
    finish_reason: str  # stop or length
    logprob: float


class Sampler(Protocol):
    name: str

    def __init__(self, model: Any, stop_ids: list[int], max_new_tokens: int, top_p: float, rows: int): ...

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with all its completions, in the order in which they are finished."""
