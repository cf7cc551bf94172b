"""How fast an endpoint is asked."""

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping

LONGEST = 60.0  # seconds between two attempts, unless the server wants more


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
    return random.uniform(0, min(LONGEST, first * 2 ** (attempt - 1)))


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
