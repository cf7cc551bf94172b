"""The settings of arms.yaml: the tables, and how an arm of each is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config.installation import read_beside
from tests.helpers import composed, settings_by_key

FILE = Path(__file__).with_name("arms.yaml")
SFT = "sft"  # the arm that all others are trained from
RULE = "rule"


def read_tables() -> dict[str, Any]:
    """Return the block of each table by its name."""
    return {name: block for name, block in read_beside(str(FILE)).items() if name != RULE}


@dataclass(frozen=True)
class Arm:
    """A training from the table's SFT model, or SFT itself. See arms.yaml."""

    title: str
    settings: Sequence[str]
    role: str = "policy"
    rate_key: str = ""
    rates: Sequence[float] = ()
    rate_of: str = ""
    control: str = ""

    def overrides(self, rate: float | None) -> list[str]:
        """Return the overrides of the arm's training at a learning rate; None: the arm has none."""
        if rate is None:
            return [*self.settings]
        return [*self.settings, f"{self.rate_key}={rate}"]


@dataclass(frozen=True)
class TableSettings:
    """The arms of a table and what they have in common. See arms.yaml."""

    name: str
    recipe: str
    seeds: Sequence[int]
    base: str
    tuning_epochs: float | None
    views: dict[str, list[str]]
    decides: str
    guards: str
    arms: dict[str, Arm]

    @classmethod
    def read(cls, name: str) -> "TableSettings":
        block = read_tables()[name]
        arms = {arm: Arm(**keys) for arm, keys in block["arms"].items()}
        return cls(**block | {"name": name, "arms": arms})

    def line(self, arm: str, rate: float | None, seed: int) -> list[str]:
        """Return the overrides of the run that trains an arm."""
        return [
            f"recipe={self.recipe}",
            "tracker=none",
            f"seed={seed}",
            *self.arms[arm].overrides(rate),
        ]

    def changed_keys(self, arm: str) -> set[str]:
        """Return the keys in which an arm's composed settings differ from those of the base arm."""
        own, base = (
            settings_by_key(composed(*self.line(name, None, 0))) for name in (arm, self.base)
        )
        return {key for key in own.keys() | base.keys() if own.get(key) != base.get(key)}

    def stated_keys(self, arm: str) -> set[str]:
        """Return the keys that an arm states to be other than those of the base arm."""
        stated = {*self.arms[arm].settings} - {*self.arms[self.base].settings}
        return {setting.partition("=")[0] for setting in stated}
