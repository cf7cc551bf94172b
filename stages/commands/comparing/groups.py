"""Compare models measured on the same prompts: their settings, their results, and which one is best."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.commands.comparing.measured import Row
from stages.commands.node_settings import ABSENT, SettingDifferences, without_seeds
from stages.config.installation import arguments_of
from stages.evaluation.best_model import Contender, compare_models, conclusion
from stages.evaluation.intervals import Interval
from stages.pipeline import provenance

NAMED = 90  # characters; longer settings are cut off in a sentence


@dataclass(eq=False)
class Setting:
    """One model (policy, control or SFT) under one setting: its runs differ only in their seeds. `is_sft`: others of
    the group start from this model, so it is no setting to choose."""

    runs: list[Row]
    is_sft: bool = False
    name: str = ""  # `dpo.beta=0.1`, `SFT`
    line: str = ""  # the settings that differ from the common ones
    interval: Interval = field(init=False)  # of the pass rate
    gain: Interval | None = None  # over the best SFT, with its uncorrected interval; None for SFT
    mark: str = ""  # `better` or `worse` than the best SFT after correction
    is_rival: bool = False  # it may be as good as the best
    is_front: bool = False  # no other has a higher rate at the same KL or less

    @property
    def role(self) -> str:
        return self.runs[0].role

    @property
    def title(self) -> str:
        return self.runs[0].title

    @property
    def rate(self) -> float:
        return self.mean("rate")

    @property
    def kl(self) -> float:
        return self.mean("kl")

    @property
    def passed(self) -> NDArray[Any]:
        """The share of runs that passed, for each prompt."""
        return np.mean([run.passed for run in self.runs], 0)

    @property
    def benchmarks(self) -> dict[str, float]:
        """The mean over runs of each benchmark rate that all runs have."""
        means = {}
        for name in self.runs[0].benchmarks:
            rates = [run.benchmarks[name] for run in self.runs if name in run.benchmarks]
            if len(rates) == len(self.runs):
                means[name] = fmean(rates)
        return means

    def place(self) -> tuple[float, float]:
        """Return by what settings are sorted: the highest rate first, then the lowest KL."""
        return -self.rate, self.kl

    def mean(self, name: str) -> float:
        """Return the mean over runs of one of their figures."""
        return fmean(getattr(run, name) for run in self.runs)

    def is_beaten_by(self, other: "Setting") -> bool:
        """Return whether another setting is better in rate or KL, and not worse in the other."""
        is_worse = other.rate < self.rate or other.kl > self.kl
        return not is_worse and (other.rate, other.kl) != (self.rate, self.kl)


class Group:
    """Models measured on the same prompts. `settings`: the highest pass rate first; `best_sft`: of SFT models from which
    others start, None if all are SFT models."""

    def __init__(self, rows: list[Row]):
        self.rows = rows
        settings = sorted(settings_of(rows), key=Setting.place)
        passed = np.stack([setting.passed for setting in settings], 1)
        comparison = compare_models(passed, rows[0].tasks, rows[0].tasks_drawn)
        start = next((i for i, setting in enumerate(settings) if setting.is_sft), None)
        for i, setting in enumerate(settings):
            setting.interval = comparison.means.share(i)
            setting.is_front = not any(map(setting.is_beaten_by, settings))
            if start is not None and not setting.is_sft:
                setting.gain = comparison.uncorrected(start, i)
                setting.mark = comparison.corrected(start, i).word("better", "worse", "")
        choices = [i for i, setting in enumerate(settings) if not setting.is_sft]
        if start is None or choices[0] < start:
            for i in comparison.rivals(choices[0], choices):
                settings[i].is_rival = True
        self.settings = settings
        self.comparison = comparison
        self.best_sft = None if start is None else settings[start]

    def size(self) -> int:
        return len(self.settings)

    @property
    def split(self) -> str:
        return self.rows[0].prompts[0]

    @property
    def prompts(self) -> str:
        return f"{self.rows[0].results['primary']['prompts']} {self.split} prompts"

    @property
    def title(self) -> str:
        """The recipes that the evaluations' commands name, and the prompts."""
        words = set[str]().union(*(arguments_of(row.command) for row in self.rows))
        recipes = sorted(word for word in words if word.startswith("recipe="))
        tasks = self.rows[0].results["primary"]["tasks"]
        run = ", ".join(recipes) or "the default recipe"
        return f"{run}: {self.prompts} of {tasks} tasks ({self.rows[0].prompts[1]})"

    @property
    def caveat(self) -> str:
        """The evaluation's warning that there are too few tasks, or ''."""
        return str(self.rows[0].results["primary"].get("note", ""))

    @property
    def common_settings(self) -> dict[str, str]:
        """The differing settings with the value that most policies share."""
        policies = [setting for setting in self.settings if setting.role == "policy"]
        common: dict[str, str] = {}
        for title in dict.fromkeys(setting.title for setting in policies):
            common |= differences(policies, title).common
        return {key: value for key, value in common.items() if value != ABSENT}

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmark rates that any setting has."""
        names: dict[str, float] = {}
        for setting in self.settings:
            names |= setting.benchmarks
        return [*names]

    @property
    def sentence(self) -> str:
        models = [Contender(shortened(s.name), s.rate, s.is_sft) for s in self.settings]
        return conclusion(models, f"passes {{}} of {self.prompts}", self.comparison)

    @property
    def note(self) -> str:
        """The warning that the rate of the best setting is optimistic, with the command that measures it again."""
        choices = [setting for setting in self.settings if not setting.is_sft]
        if len(choices) == 1:
            return ""
        note = f"The rate of the best of {len(choices)} settings is optimistic, as the same {self.split} prompts chose it."
        if self.split == "test":
            way = (
                "Choose with answer.split=validation, and evaluate the chosen setting on test once."
            )
            return f"{note} {way}"
        if self.settings[0].is_sft:
            return f"{note} Evaluate on test once, if at all."
        typed = arguments_of(choices[0].runs[0].command)
        typed = [word for word in typed if not word.startswith("answer.split=")]
        once = provenance.command("report", typed)
        name = shortened(choices[0].name)
        return f"{note} Evaluate the chosen setting on test once; for {name}: {once}"


def settings_of(rows: list[Row]) -> list[Setting]:
    """Return the models with their runs and names."""
    rows_by_settings: dict[Any, list[Row]] = {}
    for row in rows:
        key = (row.role == "sft", *sorted(without_seeds(row.settings).items()))
        rows_by_settings.setdefault(key, []).append(row)
    alone = all(row.role == "sft" for row in rows)
    settings = [
        Setting(runs, is_sft=runs[0].role == "sft" and not alone)
        for runs in rows_by_settings.values()
    ]
    for role in dict.fromkeys(setting.role for setting in settings):
        name_settings([setting for setting in settings if setting.role == role])
    return settings


def name_settings(settings: list[Setting]) -> None:
    """Name the models of one role by what differs among them."""
    titles = Counter(setting.title for setting in settings)
    for title, count in titles.items():
        lines = differences(settings, title).lines
        for setting, line in zip(settings, lines, strict=True):
            if setting.title != title:
                continue
            setting.line = line
            setting.name = title
            if setting.role == "policy" and len(titles) == 1:
                setting.name = line or title
            elif line or count > 1:
                setting.name = f"{title} ({line or 'as most of its kind'})"


def differences(settings: list[Setting], title: str) -> SettingDifferences:
    """Return the differences between settings in what concerns those with this title (`DPO`). A key that only some
    titles have, such as `dpo.beta`, is left out if it has the same value in all of its settings."""
    rows = [without_seeds(setting.runs[0].settings) for setting in settings]
    own = [row for setting, row in zip(settings, rows, strict=True) if setting.title == title]
    names = set[str]()
    for key in set[str]().union(*own):
        values = {row.get(key) for row in own}
        if len(values) > 1 or all(key in row for row in rows):
            names.add(key)
    kept = []
    for row in rows:
        kept.append({key: value for key, value in row.items() if key in names})
    return SettingDifferences(kept)


def shortened(name: str) -> str:
    return name if len(name) <= NAMED else f"{name[:NAMED]}…"


def group_by_prompts(rows: list[Row]) -> list[Group]:
    """Return the groups, the largest first."""
    rows_by_prompts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        rows_by_prompts.setdefault(row.prompts, []).append(row)
    groups = [Group(rows) for rows in rows_by_prompts.values()]
    return sorted(groups, key=Group.size, reverse=True)
