"""The spending of a node at an endpoint, within its budget, and the rate of its calls."""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.config.blocks.endpoints import Budget, Price
from stages.config.errors import UserError
from stages.store import json_log
from stages.store.allowance import Allowance

MILLION = 1_000_000
HIGHEST = 10**12  # tokens; larger counts in a file are errors
LONGEST_WAIT = 60.0  # seconds between two attempts, unless Retry-After is longer
LOOK = 0.5  # seconds between two looks whether the stage has ended
RECHECK = 0.05  # seconds between two looks whether other calls have returned money


def amounts_in(row: Any) -> tuple[int, int, int]:
    """Return the calls, request tokens and answer tokens that a line of the file counts."""
    calls, input_tokens, output_tokens = row
    if not all(type(amount) is int and abs(amount) <= HIGHEST for amount in row):
        raise ValueError("no amounts")
    return calls, input_tokens, output_tokens


class Spending(json_log.Appender):
    """The calls, tokens and money that a node spends. A call reserves its upper bound before it starts, and returns
    the unused part when it ends. A file records both for a resumed node. Interrupted calls count in full. The money of
    all nodes and endpoints together is limited by the command's allowance."""

    def __init__(self, file: Path, budget: Budget, price: Price, key: str, allowance: Allowance):
        self.budget, self.price, self.key = budget, price, key
        self.allowance = allowance
        super().__init__(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.recount()

    def recount(self) -> None:
        """Count what the file says that this process and others have spent."""
        self.allowance.accounts[self.path] = self
        self.calls = self.input = self.output = self.open = 0
        for line in json_log.read(
            self.path, amounts_in, "Their calls and tokens are missing from the budget."
        ):
            self._add(*line.value)

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.recount()
        self.settled = asyncio.Event()  # of the running event loop
        with super().opened():
            yield

    def _add(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        self.calls += calls
        self.input += input_tokens
        self.output += output_tokens

    def _note(self, *amounts: int) -> None:
        self._add(*amounts)
        json_log.append(self.file, json.dumps(amounts).encode() + b"\n")

    @property
    def money(self) -> float:
        return self.cost(self.input, self.output)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (
            input_tokens * (self.price.input or 0) + output_tokens * (self.price.output or 0)
        ) / MILLION

    def exceeded_limit(self, input_tokens: int, output_tokens: int) -> str:
        """Return the budget limit that one more call with these tokens could exceed, as KEY=VALUE, or ''."""
        after = {
            "calls": self.calls + 1,
            "tokens": self.input + self.output + input_tokens + output_tokens,
            "money": self.money + self.cost(input_tokens, output_tokens),
        }
        for name, amount in after.items():
            limit = getattr(self.budget, name)
            if limit is not None and amount > limit:
                return f"{self.key}.budget.{name}={limit:g}"
        return ""

    async def reserve(self, input_tokens: int, output_tokens: int) -> None:
        """Reserve a call's upper bound in the budget and in the allowance; if it does not fit, wait for calls to return
        tokens. Raise UserError if the budget does not allow the call, and LimitReached if the allowance does not."""
        await self._wait_for_budget(input_tokens, output_tokens)
        cost = self.cost(input_tokens, output_tokens)
        while not self.allowance.covers(cost):
            if not self.allowance.has_open_calls:
                self.allowance.stop_spending(cost, f"at {self.key}, whose replies are kept")
            # calls to another endpoint may return money, too
            await asyncio.sleep(RECHECK)
            await self._wait_for_budget(input_tokens, output_tokens)
        self.open += 1
        self._note(1, input_tokens, output_tokens)

    async def _wait_for_budget(self, input_tokens: int, output_tokens: int) -> None:
        """Wait until the budget has room for a call with these tokens. Raise UserError if it will have none."""
        while limit := self.exceeded_limit(input_tokens, output_tokens):
            if not self.open or limit.rpartition(".")[2].startswith("calls"):
                spent = f"{self.calls} calls, {self.input + self.output} tokens"
                spent += f" and {self.money:.2f} of money" if self.money else ""
                way_out = (
                    "All replies are stored: raise this limit in the same command to continue."
                )
                raise UserError(f"{limit} allows no further call: {spent} are spent. {way_out}")
            self.settled.clear()
            await self.settled.wait()

    def settle(
        self, reserved: tuple[int, int], used: tuple[int, int], was_sent: bool = True
    ) -> None:
        """Count the used tokens of a call that has ended, instead of the reserved ones, and whether it was sent."""
        self.open -= 1
        self._note(0 if was_sent else -1, used[0] - reserved[0], used[1] - reserved[1])
        self.settled.set()


class Pace:
    """A rate limit that spreads calls or tokens evenly over each minute, without bursts."""

    def __init__(self, per_minute: int | None):
        self.seconds = 60 / per_minute if per_minute else 0.0  # seconds per call or token
        self.next_start = 0.0  # earliest start of the next call
        self.rest_until = 0.0  # end of the pause that the server asked for

    async def wait(self, has_ended: Callable[[], bool], amount: int = 1) -> None:
        """Wait until `amount` more calls or tokens are allowed, or the stage has ended."""
        begin = max(time.monotonic(), self.next_start)
        self.next_start = begin + self.seconds * amount
        while not has_ended() and (remaining := max(begin, self.rest_until) - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining, LOOK))

    def rest(self, seconds: float) -> None:
        """Pause all calls for some seconds."""
        self.rest_until = max(self.rest_until, time.monotonic() + seconds)

    def give_back(self, amount: int) -> None:
        """Return an amount that was not used."""
        self.next_start -= self.seconds * amount


def backoff(first: float, attempt: int) -> float:
    """Return the seconds to wait before retry 1, 2, …: random from 0 to a bound that doubles. This full jitter spreads
    calls that failed together (Brooker 2015, AWS Architecture Blog)."""
    return random.uniform(0, min(LONGEST_WAIT, first * 2 ** (attempt - 1)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for, from a number or a date, or None."""
    if (value := headers.get("retry-after")) is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, min(seconds, 86_400.0))
