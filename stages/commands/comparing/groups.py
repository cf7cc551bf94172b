"""Models measured on the same prompts, side by side: which settings differ, what came out, and which is best."""

from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from stages.commands.comparing.measured import Row
from stages.commands.node_settings import Differing, unseeded
from stages.config.installation import arguments_of
from stages.evaluation.best_model import Comparison, Contender, compared, conclusion
from stages.evaluation.intervals import Interval
from stages.pipeline import provenance

NAMED = 90  # characters of settings in a sentence


@dataclass
class Setting:
    """Runs that differ in their seeds alone, of one model: the policy, the control, or SFT."""

    runs: list[Row]
    name: str = ""  # `dpo.beta=0.1`, `SFT`
    line: str = ""  # its settings, as far as they differ from most

    @property
    def start(self) -> bool:
        return self.runs[0].role == "sft"

    @property
    def title(self) -> str:
        return self.runs[0].title

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.runs)

    @property
    def rate(self) -> float:
        return fmean(run.rate for run in self.runs)

    @property
    def kl(self) -> float:
        return fmean(run.kl for run in self.runs)

    def mean(self, figure: str) -> float:
        """Of `mean_tokens` or `stop_rate`."""
        return fmean(run.results[figure][run.role] for run in self.runs)


@dataclass
class Group:
    """Models measured on the same prompts."""

    rows: list[Row]

    @property
    def split(self) -> str:
        return self.rows[0].prompts[0]

    @property
    def prompts(self) -> str:
        primary = self.rows[0].results["primary"]
        return f"{primary['prompts']} {self.split} prompts"

    @property
    def title(self) -> str:
        tasks = self.rows[0].results["primary"]["tasks"]
        return f"{self.prompts} of {tasks} tasks ({self.rows[0].prompts[1]})"

    @property
    def tasks_drawn(self) -> bool:
        return self.rows[0].tasks_drawn

    @property
    def caveat(self) -> str:
        """As the evaluation has it: too few tasks to say."""
        return str(self.rows[0].results["primary"].get("note", ""))

    @cached_property
    def settings(self) -> list[Setting]:
        """The highest pass rate first."""
        alike: dict[Any, list[Row]] = {}
        for row in self.rows:
            alike.setdefault((row.role, *sorted(unseeded(row.settings).items())), []).append(row)
        found = [Setting(runs) for runs in alike.values()]
        for role in {s.runs[0].role for s in found}:
            those = [s for s in found if s.runs[0].role == role]
            for setting, line in zip(those, self.differing(those).lines, strict=True):
                setting.line, setting.name = line, setting.title
                if role == "policy" and line:
                    setting.name = line
                elif len(those) > 1:
                    setting.name = f"{setting.title} ({line or 'as most'})"
        return sorted(found, key=lambda s: (-s.rate, s.kl))

    def differing(self, settings: list[Setting]) -> Differing:
        return Differing([unseeded(setting.runs[0].settings) for setting in settings])

    @property
    def usual(self) -> dict[str, str]:
        """What most policies have of the settings that differ between them."""
        return self.differing([s for s in self.settings if s.runs[0].role == "policy"]).usual

    @property
    def start(self) -> int:
        """The place of the SFT with the highest rate."""
        return next(i for i, setting in enumerate(self.settings) if setting.start)

    @cached_property
    def comparison(self) -> Comparison | None:
        """None where the answers of one of them are gone, or were checked by other rules."""
        outcomes = [[run.passed for run in setting.runs if run.passed is not None] for setting in self.settings]
        if any(len(known) < len(s.runs) for known, s in zip(outcomes, self.settings, strict=True)):
            return None
        rows = np.array([np.mean(known, 0) for known in outcomes]).T
        return compared(rows, self.rows[0].tasks, self.tasks_drawn)

    @cached_property
    def rates(self) -> list[Interval]:
        """The pass rate of each setting, of its seeds together. Where answers are gone, from the lowest bound to the
        highest that its evaluations have."""
        if self.comparison is None:
            own = [[run.interval for run in setting.runs] for setting in self.settings]
            return [
                Interval(setting.rate, min(i["low"] for i in each), max(i["high"] for i in each))
                for setting, each in zip(self.settings, own, strict=True)
            ]
        return [self.comparison.means.share(i) for i in range(len(self.settings))]

    @property
    def gains(self) -> list[Interval | None]:
        """Of each setting over the best SFT, with the interval that an evaluation of the two prints."""
        if self.comparison is None:
            return [None] * len(self.settings)
        return [None if s.start else self.comparison.alone(self.start, i) for i, s in enumerate(self.settings)]

    @property
    def marks(self) -> list[str]:
        """Of each setting, whether it is `better` or `worse` than the best SFT by more than chance among so many."""
        if self.comparison is None:
            return [""] * len(self.settings)
        corrected = [self.comparison.between(self.start, i) for i in range(len(self.settings))]
        return ["better" if each.low > 0 else "worse" if each.high < 0 else "" for each in corrected]

    @property
    def rivals(self) -> list[int]:
        """The settings that may be as good as the best, where that is better than SFT."""
        settings = [i for i, setting in enumerate(self.settings) if not setting.start]
        if self.comparison is None or settings[0] > self.start:
            return []
        return self.comparison.rivals(settings[0], settings)

    @property
    def sentence(self) -> str:
        models = [Contender(shortened(s.name), s.rate, s.start) for s in self.settings]
        return conclusion(models, f"passes {{}} of {self.prompts}", self.comparison)

    @property
    def front(self) -> list[bool]:
        """Of each setting, whether no other has a higher rate at no more KL, or less KL at no lower a rate."""
        return [
            not any(o.rate >= s.rate and o.kl <= s.kl and (o.rate, o.kl) != (s.rate, s.kl) for o in self.settings)
            for s in self.settings
        ]

    @property
    def note(self) -> str:
        """How far the first setting may be trusted."""
        chosen_from = [setting for setting in self.settings if not setting.start]
        first, count = chosen_from[0], len(chosen_from)
        if count == 1:
            return ""
        overrides = [o for o in arguments_of(first.runs[0].command) if not o.startswith("answer.split=")]
        once = provenance.command("report", overrides)
        note = f"The best of {count} on the {self.split} prompts that choose it looks better than it is. "
        if self.split == "test":
            return note + "Choose by answer.split=validation, and read test once, with what is chosen."
        if self.settings[0].start:
            return f"{note}Read test once, if at all."
        return f"{note}Read test once, with what is chosen; for {shortened(first.name)}: {once}"


def shortened(name: str) -> str:
    return name if len(name) <= NAMED else f"{name[:NAMED]}…"


def grouped(found: list[Row]) -> list[Group]:
    by_prompts: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        by_prompts.setdefault(row.prompts, []).append(row)
    return sorted(map(Group, by_prompts.values()), key=lambda group: -len(group.settings))
