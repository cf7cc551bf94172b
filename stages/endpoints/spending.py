"""What a node spends at an endpoint, within its budget, and how fast it asks there."""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config.blocks.endpoints import Budget, Price
from stages.config.errors import UserError
from stages.store import json_log

MILLION = 1_000_000
HIGHEST = 10**12  # tokens of a call, and of a budget
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the server wants more


def amounts_in(row: Any) -> tuple[int, int, int]:
    """Return the calls and the tokens of requests and answers that a line counts."""
    calls, input_tokens, output_tokens = row
    if not all(type(amount) is int and abs(amount) <= HIGHEST for amount in row):
        raise ValueError("no amounts")
    return calls, input_tokens, output_tokens


class Spending(json_log.Appender):
    """Counts calls, tokens and money. Before a call it takes what the call may cost at most, after it gives back the
    rest. Both stand in a file, for a resume; a call that a kill interrupted counts in full. Used inside `opened`."""

    def __init__(self, file: Path, budget: Budget, price: Price, key: str):
        self.budget, self.price, self.key = budget, price, key
        self.calls = self.input = self.output = self.open = 0
        self.settled = asyncio.Event()
        super().__init__(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        for line in json_log.read(file, amounts_in, "What they counted is not in the budget."):
            self._add(*line.value)

    def _add(self, calls: int, input_tokens: int, output_tokens: int) -> None:
        self.calls, self.input, self.output = (
            self.calls + calls,
            self.input + input_tokens,
            self.output + output_tokens,
        )

    def _note(self, *amounts: int) -> None:
        self._add(*amounts)
        self.append(json.dumps(amounts).encode() + b"\n")

    @property
    def tokens(self) -> int:
        return self.input + self.output

    @property
    def money(self) -> float:
        return self.cost(self.input, self.output)

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * (self.price.input or 0) + output_tokens * (self.price.output or 0)) / MILLION

    def over(self, input_tokens: int, output_tokens: int) -> str:
        """Which limit one more call, of so many tokens at most, could pass; '' for none."""
        after = {
            "calls": self.calls + 1,
            "tokens": self.tokens + input_tokens + output_tokens,
            "money": self.money + self.cost(input_tokens, output_tokens),
        }
        for name, amount in after.items():
            limit = getattr(self.budget, name)
            if limit is not None and amount > limit:
                return f"{self.key}.budget.{name}={limit:g}"
        return ""

    async def take(self, input_tokens: int, output_tokens: int) -> None:
        """Take a call of so many tokens at most out of the budget, after calls that may give some of it back.

        Raises:
            UserError: where the budget does not allow it.
        """
        while limit := self.over(input_tokens, output_tokens):
            if not self.open or limit.rpartition(".")[2].startswith("calls"):
                raise UserError(
                    f"{limit} allows no further call: {self.calls} calls, {self.tokens} tokens"
                    + (f" and {self.money:.2f} of money" if self.money else "")
                    + " are spent. Every answer is kept: raise the budget, and the same command goes on from here."
                )
            self.settled.clear()
            await self.settled.wait()
        self.open += 1
        self._note(1, input_tokens, output_tokens)

    def settle(self, taken: tuple[int, int], used: tuple[int, int]) -> None:
        """A call has ended that used so many tokens of those that were taken."""
        self.open -= 1
        self._note(0, used[0] - taken[0], used[1] - taken[1])
        self.settled.set()


class Pace:
    """Lets so much pass in a minute, evenly: no burst comes before a rest."""

    def __init__(self, per_minute: int | None):
        self.seconds = 60 / per_minute if per_minute else 0.0  # each
        self.free = 0.0  # when the next may pass
        self.rested = 0.0  # when anything may, after the server asked for a rest

    async def wait(self, amount: int = 1) -> None:
        """Until so much more may pass."""
        now = time.monotonic()
        begin = max(now, self.free)
        self.free = begin + self.seconds * amount
        await asyncio.sleep(begin - now)
        while (left := self.rested - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def rest(self, seconds: float) -> None:
        """Let nothing pass for so long."""
        self.rested = max(self.rested, time.monotonic() + seconds)

    def give_back(self, amount: int) -> None:
        """Of what passed, so much turned out not to be needed."""
        self.free -= self.seconds * amount


def backoff(first: float, attempt: int) -> float:
    """Seconds to wait before attempt 1, 2, …: drawn from 0 to a bound that doubles (full jitter), so that calls that
    failed together do not come again together (Brooker 2015, AWS Architecture Blog)."""
    return random.uniform(0, min(LONGEST_WAIT, first * 2 ** (attempt - 1)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server wants to be left alone, as a number or as a date; None where it does not say."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        return max(0.0, min(float(said), 86_400.0))
    except ValueError:
        pass
    try:
        return max(0.0, min(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 86_400.0))
    except (ValueError, OverflowError):
        return None
