"""The protocol of samplers."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.blocks.runtimes import InferenceRuntime, SamplingRuntime
from stages.config.choices import Precision
from stages.store.records import Message, content_id
from stages.store.workspace import StageDir

REASONS = ("stop", "length")


@dataclass
class Decoding:
    """The settings to complete a prompt, with a temperature (0 is greedy) per candidate. `block`: their block."""

    temperatures: list[float]
    max_new_tokens: int
    precision: Precision
    runtime: InferenceRuntime
    top_p: float = 1.0
    seed: int = 0
    block: str = "sample"

    @property
    def runtime_key(self) -> str:
        """The setting with the runtime: demonstrations (`select`) are sampled with that of `sample`."""
        if self.block == "select":
            return "sample.runtime"
        return f"{self.block}.runtime"


def choose_shard_size(runtime: InferenceRuntime, prompts: int, per_prompt: int, device: str) -> int:
    """Return how many of the prompts a shard keeps: `runtime.shard_size`, or those of half a batch of candidates. On
    an accelerator they fill four batches, unless a process would have no shard: a step takes as long for the last
    candidates of a shard as for a batch. (2,000 short candidates take 128 steps; in shards of 64 prompts, 720.)"""
    if runtime.shard_size:
        return runtime.shard_size
    if device == "cpu":
        return max(1, runtime.batch_size // 2 // per_prompt)
    own = prompts
    if isinstance(runtime, SamplingRuntime):
        own = math.ceil(prompts / runtime.world_size)
    return max(1, min(4 * runtime.batch_size // per_prompt, own))


@dataclass
class Request:
    """A prompt to complete `len(temperatures)` times; temperature 0 is greedy. Draws depend on `id`, `seed`, the
    candidate's index and the step, but not on the batch, the order or the shard. `token_ids`: the prompt under the
    model's contract."""

    id: str
    messages: list[Message]
    token_ids: list[int]
    temperatures: list[float]
    seed: int

    def seed_of(self, candidate: int) -> int:
        """Return 63 bits of a hash of the request and the candidate."""
        digest = content_id(self.id, self.seed, candidate, self.temperatures[candidate])
        return int(digest, 16) >> 1


@dataclass
class Completion:
    """A completion as token ids or as text. Samplers that draw tokens return token ids, with the end of turn, and the
    sum of their log-probs at temperature 1. Samplers that only receive text, as from an endpoint, return text, which
    the model's tokenizer encodes for training."""

    token_ids: list[int] | None
    finish_reason: str  # stop or length
    logprob: float | None = None
    text: str | None = None


@dataclass
class Missing:
    """The reason why a completion is missing. A sampler returns it instead of an empty completion. `is_reply`: the
    reason is a reply of the server, such as a refusal, so the same request has no other result."""

    reason: str
    is_reply: bool = False


# a request, a candidate's index there, and its completion
DrawnCompletion = tuple[Request, int, Completion | Missing]


def longest_first(requests: Iterable[Request]) -> list[Request]:
    return sorted(requests, key=lambda request: (-len(request.token_ids), request.id))


def whole_requests(drawn: Iterable[DrawnCompletion]) -> Iterator[tuple[Request, list[Any]]]:
    """Yield every request with all its completions, once the last of them is there."""
    waiting = defaultdict[str, dict[int, Any]](dict)
    for request, index, completion in drawn:
        done = waiting[request.id]
        done[index] = completion
        if len(done) == len(request.temperatures):
            yield request, [done[i] for i in sorted(done)]
            del waiting[request.id]


class Sampler(ABC):
    """A way to complete prompts. A file in this folder with one Sampler class is a sampler; `sample=` takes the
    file's name. A user's own (`sample.own`) is opened with its options, and needs `name`, `open` and `complete`."""

    name: str  # stored in every candidate
    policy: str | None = None  # the model that answers, if it is not the policy
    # versions of an engine outside this Python: a node has draws of only one
    engine: dict[str, str] | None = None

    @classmethod
    def opener(cls, cfg: Any, out: StageDir) -> "Open":
        """Return the function that opens the sampler for a stage with the block `sample`. Override it to bind more."""
        return cls.open

    @classmethod
    @abstractmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "Sampler":
        """Return a sampler of the model in a folder, or of another source that its options name. It is called once, in
        the process that samples, before the first request. Any token of `stop_ids` ends a completion."""

    @abstractmethod
    def complete(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[Request, Sequence[Completion | Missing]]]:
        """Yield every request with all its completions, in the order of completion."""

    def close(self) -> None:  # noqa: B027  # most samplers hold nothing outside this process
        """Free what the sampler holds outside this process, before a stage that does not sample begins."""


class LocalModel(ABC):
    """The model of a sampler in this process, which completes at most `rows` candidates at once."""

    def __init__(
        self, model: Any, stop_ids: list[int], max_new_tokens: int, top_p: float, rows: int
    ):
        self.model = model
        self.stops = set(stop_ids)
        self.limit = max_new_tokens
        self.top_p = top_p
        self.rows = rows

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Yield every request with all its completions, in the order of completion."""
        return whole_requests(self.draw(requests))

    @abstractmethod
    def draw(self, requests: Sequence[Request]) -> Iterator[DrawnCompletion]:
        """Yield every completion, in any order."""


Open = Callable[[Path, list[int], Decoding], Sampler]
