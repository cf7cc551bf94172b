"""Models at servers: what is asked, how fast, and what it may cost."""

from dataclasses import dataclass, field
from typing import Any

from stages.config.limits import between, neutral, positive

SHORTEST_KEY = 8  # characters: a shorter key (EMPTY, ollama) is a word of other texts, and no secret


@dataclass
class Price:
    """Of a million tokens."""

    input: float | None = between(0, 1_000_000, None)
    output: float | None = between(0, 1_000_000, None)

    @property
    def is_complete(self) -> bool:
        return self.input is not None and self.output is not None


@dataclass
class Budget:
    """What one node may spend at an endpoint. It stops before the call that could be too much; `money` goes by the
    model's price."""

    calls: int | None = between(1, 1_000_000_000, None)
    tokens: int | None = between(1, 1_000_000_000_000, None)
    money: float | None = positive(1_000_000_000, None)


@dataclass
class EndpointRuntime:
    """How fast an endpoint is asked, and how often again where it does not answer."""

    concurrency: int = between(1, 10_000, 8)  # calls at once
    requests_per_minute: int | None = between(1, 10_000_000, None)
    tokens_per_minute: int | None = between(1, 1_000_000_000, None)
    timeout: float = positive(86_400, 120.0)  # seconds for a whole answer
    retries: int = between(0, 100, 5)  # of a call that failed
    backoff: float = positive(3600, 1.0)  # seconds before the first retry at most, doubled for each that follows


@dataclass
class Endpoint:
    """A model at an OpenAI-compatible server. `api_key_env` is the *name* of the environment variable that holds the
    key. `extra` goes into every request, under the server's own names; null takes a name out of it."""

    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = neutral(lambda: None)
    budget: Budget = neutral(Budget)
    price: Price = neutral(Price)  # null: what `prices` says of the model
    extra: dict[str, Any] = field(default_factory=dict)
    runtime: EndpointRuntime = field(default_factory=EndpointRuntime)
