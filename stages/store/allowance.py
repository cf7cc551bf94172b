"""The allowance of a command: the minutes and the money of `limits`, and what is left of them.

The command makes one, which every stage gets in its StageDir, and every worker through the job file. What is long looks
at the time after each step, shard, prompt or call; a call to an endpoint needs its highest cost to be left."""

import math
import time
from pathlib import Path
from typing import Any, NoReturn, Protocol

from stages.config.errors import LimitReached

RAISED = 2  # a message tells to type so many times the limit


class Account(Protocol):
    """What a node has spent at an endpoint: `open` is the number of calls whose cost is not known yet."""

    open: int

    @property
    def money(self) -> float: ...

    def recount(self) -> None:
        """Count what other processes have spent there since."""


class Allowance:
    """The minutes and the money that a command may use; None is no limit. The minutes begin now, and the money counts
    the whole spending of each node that the command works on."""

    def __init__(self, minutes: float | None = None, money: float | None = None):
        self.minutes = minutes
        self.money = money
        self.deadline = math.inf
        if minutes is not None:
            self.deadline = time.time() + 60 * minutes
        # spent in the process that started this worker
        self.spent_before = 0.0
        self.accounts = dict[Path, Account]()  # by the file of the spending

    @classmethod
    def of_job(cls, job: dict[str, Any]) -> "Allowance":
        """Return the allowance that the command has given to its workers."""
        allowance = cls(job["minutes"], job["money"])
        allowance.spent_before = job["spent"]
        if job["deadline"] is not None:
            allowance.deadline = job["deadline"]
        return allowance

    def for_job(self) -> dict[str, Any]:
        """Return the allowance as JSON, for the job file."""
        deadline = None if self.minutes is None else self.deadline
        return {
            "minutes": self.minutes,
            "money": self.money,
            "deadline": deadline,
            "spent": self.spent,
        }

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the deadline, at least 0; None without a limit."""
        if self.minutes is None:
            return None
        return max(0.0, self.deadline - time.time())

    @property
    def is_late(self) -> bool:
        """True if the time is up."""
        return time.time() >= self.deadline

    def stop_if_late(self, place: str) -> None:
        """Raise LimitReached if the time is up. `place` says where the command stops, and what is kept."""
        if self.is_late:
            raise self.time_is_up(place)

    def time_is_up(self, place: str) -> LimitReached:
        """Return the end of a command whose time is up. `place`: as in `stop_if_late`."""
        minutes = self.minutes or 0.0
        return LimitReached(
            f"limits.minutes={minutes:g}: reached {place}.",
            f"limits.minutes={RAISED * minutes:g}",
        )

    @property
    def spent(self) -> float:
        """The money that is spent or reserved by calls under way."""
        return self.spent_before + sum(account.money for account in self.accounts.values())

    def spent_here(self) -> float:
        """Return the money that this node has spent in all its processes, for the process that started them."""
        for account in self.accounts.values():
            account.recount()
        return self.spent - self.spent_before

    @property
    def has_open_calls(self) -> bool:
        """True if a call is under way that may cost less than is reserved for it."""
        return any(account.open for account in self.accounts.values())

    def covers(self, cost: float) -> bool:
        """Return True if a call that may cost so much is allowed."""
        return self.money is None or self.spent + cost <= self.money

    def stop_spending(self, cost: float, place: str) -> NoReturn:
        """Raise LimitReached because the money that is left does not cover a call that may cost so much."""
        money = self.money or 0.0
        needed = max(money, self.spent + cost)
        raise LimitReached(
            f"limits.money={money:g}: reached {place}, with {self.spent:.3g} spent.",
            f"limits.money={RAISED * needed:g}",
        )
