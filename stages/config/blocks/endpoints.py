"""Blocks of a model at a server: its address, its price, a budget and the rate of calls."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urlsplit

from stages.config.errors import UserError, check_all
from stages.config.limits import at_least, between, neutral, positive

ANSWER_LIMITS = ("max_tokens", "max_completion_tokens")  # names of the limit on an answer's tokens
# characters: a shorter API key (EMPTY, ollama) is an ordinary word, not a secret to hide
SHORTEST_KEY = 8
PORTS = {"http": 80, "https": 443}
REQUEST_FIELDS = ("messages", "model", "n", "stream")  # fields that every request sets itself


@dataclass
class Price:
    """The price of a million tokens, in any currency. A budget of money counts in the same currency."""

    input: float | None = None  # of a million prompt tokens
    output: float | None = None  # of a million generated tokens

    @property
    def is_complete(self) -> bool:
        return self.input is not None and self.output is not None


@dataclass
class Budget:
    """The most that one node may spend at an endpoint. The node stops before a call that could exceed a limit."""

    calls: int | None = at_least(1, None)
    tokens: int | None = between(1, 10**15, None)  # of prompts and answers together
    money: float | None = positive(None)  # by the model's price


@dataclass
class EndpointRuntime:
    """The rate of calls to an endpoint, and the retries of failed calls."""

    concurrency: int = at_least(1, 8)  # calls at the same time
    requests_per_minute: int | None = at_least(1, None)
    tokens_per_minute: int | None = at_least(1, None)
    timeout: float = positive(120.0)  # seconds until an answer must be complete
    retries: int = at_least(0, 5)  # per failed call
    # most seconds before the first retry; doubled for each further one
    backoff: float = positive(1.0)


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

    @property
    def canonical_address(self) -> str:
        """The address in one form for all its spellings: with the port, without a slash at the end."""
        url = parse_address(self.base_url)
        if url is None:
            return str(self.base_url)
        return (
            f"{url.scheme}://{url.hostname}:{url.port or PORTS[url.scheme]}{url.path.rstrip('/')}"
        )

    def check(self, key: str, money: float | None = None) -> None:
        """Raise one UserError for all faults of the address, `extra` and the budget. `money`: `limits.money`."""
        check_all(
            [
                partial(self.check_address, key),
                partial(self.check_extra, key),
                partial(self.check_budget, key, money),
            ]
        )

    def check_address(self, key: str) -> None:
        """Raise UserError if `base_url` is no address, or if no model is named."""
        if parse_address(self.base_url) is None:
            raise UserError(f"{key}.base_url is not an address, as http://127.0.0.1:8000/v1.")
        if not self.model:
            raise UserError(f"{key}.model is missing. Set {key}.model=NAME, a model of the server.")

    def check_extra(self, key: str) -> None:
        """Raise UserError for fields that every request sets itself."""
        for name in REQUEST_FIELDS:
            if name in self.extra:
                raise UserError(f"{key}.extra.{name}={self.extra[name]}: every request sets this.")

    def check_budget(self, key: str, money: float | None) -> None:
        """Raise UserError for a limit of money without a price, or of money or tokens without a limit on answers."""
        limits_of_money = {f"{key}.budget.money": self.budget.money, "limits.money": money}
        for name, limit in limits_of_money.items():
            if limit and not self.price.is_complete:
                raise UserError(
                    f"{name}={limit:g}: the price of {self.model} is unknown. Set "
                    f"{key}.price='{{input: 0.4, output: 1.6}}'; 0 and 0 if it costs nothing."
                )
        is_bounded = self.budget.money or self.budget.tokens or money
        request = {"max_tokens": True, **self.extra}
        if is_bounded and not any(request.get(name) for name in ANSWER_LIMITS):
            raise UserError(
                f"{key}.extra.max_tokens=null: an answer may exceed the budget. Set "
                f"{key}.extra.max_completion_tokens."
            )


def parse_address(address: str | None) -> SplitResult | None:
    """Return the parts of an HTTP or HTTPS address, or None if no server can have it."""
    text = address or ""
    try:
        url = urlsplit(text)
        is_usable = url.scheme in PORTS and bool(url.hostname) and url.port != 0
    except ValueError:  # of a port that cannot be
        return None
    return url if is_usable and text.isprintable() and " " not in text else None
