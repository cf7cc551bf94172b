"""The protocol of samplers: interchangeable ways to complete prompts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision
from stages.store.records import Message, content_id
from stages.store.workspace import StageDir

REASONS = ("stop", "length")


@dataclass
class Decoding:
    """How prompts are completed: one candidate per temperature (0 is greedy). `block` says so on the command line."""

    temperatures: list[float]
    max_new_tokens: int
    precision: Precision
    runtime: InferenceRuntime
    top_p: float = 1.0
    seed: int = 0
    block: str = "sample"


@dataclass
class Request:
    """A prompt to be completed `len(temperatures)` times; temperature 0 is greedy.

    `id` and `seed` decide what is drawn, together with the candidate's index and the step: never the batch, the
    order, or the shard that a prompt falls into. `token_ids`: the prompt under the model's contract.
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
    """What was generated. Tokens where the sampler draws them itself, end of turn included, with their log-prob at
    temperature 1, summed; text where it is told no more, as by an endpoint. Tokens are trained on as they are, text as
    the model's tokenizer cuts it up."""

    token_ids: list[int] | None
    finish_reason: str  # stop or length
    logprob: float | None = None
    text: str | None = None


@dataclass
class Missing:
    """A completion that could not be had, and why: never an empty one in its place."""

    reason: str


class Sampler(ABC):
    """Completes prompts. A sampler is a file in this folder with one such class; `sample.sampler` is the file's name.

    One of the user's own (`sample.own`) is opened with its options and needs `name`, `open` and `complete`.
    """

    name: str  # stands in every candidate
    policy: str | None = None  # and who answers, where it is not the policy

    @classmethod
    def opener(cls, cfg: Any, out: StageDir) -> "Open":
        """How it is opened for a stage that samples, `cfg` being the block `sample`; one that needs more of the block
        than `open` is told binds it."""
        return cls.open

    @classmethod
    @abstractmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "Sampler":
        """A sampler with its source at hand: the model in a folder, or what its options say instead, an endpoint.

        Called once, in the process that samples, before the first request; any of `stop_ids` ends a completion.
        """

    @abstractmethod
    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Sequence[Completion | Missing]]]:
        """Every request with all its completions, in the order in which they are finished."""


Open = Callable[[Path, list[int], Decoding], Sampler]
