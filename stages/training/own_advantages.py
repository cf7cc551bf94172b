"""User-defined advantages of GRPO (`grpo.own`), and their check on made-up groups before anything is trained."""

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.training.own_function import OwnFunction

# Rewards and lengths of groups. A group has fewer completions than `grpo.completions` if some have no reward, and with a
# KL term also groups with equal rewards get advantages.
MADE_UP: tuple[tuple[list[float], list[int]], ...] = (
    ([1.0, 0.0, 0.0, 1.0], [3, 5, 2, 7]),
    ([0.25, 0.5, -2.0, 1.5, 0.0, 0.75, 0.1, 0.2], [9, 1, 4, 4, 8, 2, 6, 3]),
    ([0.0, 1.0], [2, 6]),
    ([1.0, 1.0, 1.0], [4, 4, 4]),
)


class OwnAdvantages(OwnFunction):
    """Advantages of a group, as they are computed in training."""

    arguments = ("rewards", "lengths")

    def __call__(self, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """Return the advantage of every completion. Raise UserError if the function returns something else."""
        # copies, so that the function's changes reach nothing
        advantages = self.call([*rewards], [*lengths])
        try:
            numbers = [float(each) for each in advantages]
        except (TypeError, ValueError) as error:
            raise self.error(f"returns {advantages!r:.60}", rewards) from error
        if isinstance(advantages, str | bytes) or len(numbers) != len(rewards):
            raise self.error(f"returns {len(numbers)} advantages", rewards)
        if not all(map(isfinite, numbers)):
            raise self.error(f"returns {numbers!s:.60}", rewards)
        return numbers

    def error(self, problem: str, rewards: Iterable[float]) -> UserError:
        group = [*rewards]
        way_out = f"Return a list of {len(group)} finite numbers, one for each completion"
        return UserError(f"{self.place}: it {problem} for the rewards {group}. {way_out}.")


def load_own_advantages(own: Own, key: str, node: Path) -> OwnAdvantages:
    """Return the user's function, after its check. Raise UserError if it cannot train."""
    node.mkdir(parents=True, exist_ok=True)
    function = OwnAdvantages(own, key, node)
    tried = [function(rewards, lengths) for rewards, lengths in MADE_UP]
    if not any(map(any, tried)):
        result = "so training would change nothing. Return other numbers for better completions"
        raise UserError(f"{function.place}: all advantages of made-up groups are 0, {result}.")
    return function
