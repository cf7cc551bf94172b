"""Blocks of a model at a server: its address, its price, a budget and the rate of calls."""

from dataclasses import dataclass, field
from typing import Any

from stages.config.limits import between, neutral, positive

LIMITS = ("max_tokens", "max_completion_tokens")  # names of the limit on an answer's tokens
# characters: a shorter API key (EMPTY, ollama) is an ordinary word, not a secret to hide
SHORTEST_KEY = 8


@dataclass
class Price:
    """The price of a million tokens, in any currency. A budget of money counts in the same currency."""

    input: float | None = between(0, 1_000_000, None)  # of a million prompt tokens
    output: float | None = between(0, 1_000_000, None)  # of a million generated tokens

    @property
    def is_complete(self) -> bool:
        return self.input is not None and self.output is not None


@dataclass
class Budget:
    """The most that one node may spend at an endpoint. The node stops before a call that could exceed a limit."""

    calls: int | None = between(1, 1_000_000_000, None)
    tokens: int | None = between(1, 1_000_000_000_000, None)  # of prompts and answers together
    money: float | None = positive(1_000_000_000, None)  # by the model's price


@dataclass
class EndpointRuntime:
    """The rate of calls to an endpoint, and the retries of failed calls."""

    concurrency: int = between(1, 10_000, 8)  # calls at the same time
    requests_per_minute: int | None = between(1, 10_000_000, None)
    tokens_per_minute: int | None = between(1, 1_000_000_000, None)
    timeout: float = positive(86_400, 120.0)  # seconds until an answer must be complete
    retries: int = between(0, 100, 5)  # per failed call
    # most seconds before the first retry; doubled for each further one
    backoff: float = positive(3600, 1.0)


@dataclass
class Endpoint:
    """A model at an OpenAI-compatible server."""

    base_url: str | None = None  # http://127.0.0.1:8000/v1
    model: str | None = None  # its name at the server
    # the name of the environment variable that holds the API key
    api_key_env: str | None = neutral(lambda: None)
    budget: Budget = neutral(Budget)
    price: Price = neutral(Price)  # null: the model's entry in `prices`
    # added to each request; null removes a field from it
    extra: dict[str, Any] = field(default_factory=dict)
    runtime: EndpointRuntime = field(default_factory=EndpointRuntime)
