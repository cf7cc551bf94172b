"""Compare models measured on the same prompts: their settings, their results, and which one is best."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from stages.commands.comparing.measured import Row, mean_over_runs
from stages.commands.node_settings import ABSENT, SettingDifferences, without_seeds
from stages.config.installation import arguments_of
from stages.evaluation.best_model import Comparison, Contender, compare_models, conclusion
from stages.evaluation.intervals import Interval
from stages.pipeline import provenance

NAMED = 90  # characters; longer settings are cut off in a sentence


@dataclass
class Setting:
    """One model (policy, control or SFT) under one setting: its runs differ only in their seeds. `is_sft`: others of
    the group start from this model, so it is no setting to choose."""

    runs: list[Row]
    is_sft: bool = False
    name: str = ""  # `dpo.beta=0.1`, `SFT`
    line: str = ""  # the settings that differ from the common ones
    seconds, flops, rate, kl = map(mean_over_runs, ("seconds", "flops", "rate", "kl"))

    @property
    def title(self) -> str:
        return self.runs[0].title

    @property
    def benchmarks(self) -> dict[str, float]:
        """The mean over runs of each benchmark rate that all runs have, by task, metric and number of prompts."""
        by_run = [
            {
                f"{r['task']} {r['metric']} ({r['prompts']})": r[run.named]["mean"]
                for r in run.results["benchmarks"]
            }
            for run in self.runs
            if "benchmarks" in run.results
        ]
        if len(by_run) < len(self.runs):
            return {}
        return {
            name: fmean(rates[name] for rates in by_run)
            for name in by_run[0]
            if all(name in r for r in by_run)
        }

    def mean(self, name: str) -> float:
        """Return the mean over runs of `mean_tokens` or `stop_rate`."""
        return fmean(run.results[name][run.named] for run in self.runs)


@dataclass
class Group:
    """Models measured on the same prompts."""

    rows: list[Row]

    @property
    def split(self) -> str:
        return self.rows[0].prompts[0]

    @property
    def prompts(self) -> str:
        return f"{self.rows[0].results['primary']['prompts']} {self.split} prompts"

    @property
    def recipes(self) -> str:
        """The recipes that the evaluations' commands name."""
        words = [word for row in self.rows for word in arguments_of(row.command)]
        named = sorted({word for word in words if word.startswith("recipe=")})
        return ", ".join(named) or "the default recipe"

    @property
    def title(self) -> str:
        return f"{self.recipes}: {self.prompts} of {self.rows[0].results['primary']['tasks']} tasks ({self.rows[0].prompts[1]})"

    @property
    def caveat(self) -> str:
        """The evaluation's warning that there are too few tasks, or ''."""
        return str(self.rows[0].results["primary"].get("note", ""))

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, the highest pass rate first."""
        rows_by_settings: dict[Any, list[Row]] = {}
        for row in self.rows:
            key = (row.role == "sft", *sorted(without_seeds(row.settings).items()))
            rows_by_settings.setdefault(key, []).append(row)
        alone = all(row.role == "sft" for row in self.rows)
        settings = [
            Setting(runs, runs[0].role == "sft" and not alone) for runs in rows_by_settings.values()
        ]
        for role in {s.runs[0].role for s in settings}:
            same_role = [s for s in settings if s.runs[0].role == role]
            titles = Counter(s.title for s in same_role)
            lines_by_title = {title: differences(same_role, title).lines for title in titles}
            for i, setting in enumerate(same_role):
                setting.line, setting.name = lines_by_title[setting.title][i], setting.title
                if role == "policy" and len(titles) == 1:
                    setting.name = setting.line or setting.title
                elif setting.line or titles[setting.title] > 1:
                    setting.name = f"{setting.title} ({setting.line or 'as most of its kind'})"
        return sorted(settings, key=lambda s: (-s.rate, s.kl))

    @property
    def common_settings(self) -> dict[str, str]:
        """The differing settings with the value that most policies share."""
        policies = [s for s in self.settings if s.runs[0].role == "policy"]
        by_title = [
            differences(policies, title).common
            for title in dict.fromkeys(s.title for s in policies)
        ]
        return {
            key: value for common in by_title for key, value in common.items() if value != ABSENT
        }

    @property
    def benchmarks(self) -> list[str]:
        """The names of the benchmark rates that any setting has."""
        return [*dict.fromkeys(name for setting in self.settings for name in setting.benchmarks)]

    @property
    def sft_index(self) -> int | None:
        """The index of the SFT model with the highest rate, from which others start; None if all are SFT models."""
        return next((i for i, setting in enumerate(self.settings) if setting.is_sft), None)

    @cached_property
    def comparison(self) -> Comparison:
        rows = np.array(
            [np.mean([run.passed for run in setting.runs], 0) for setting in self.settings]
        ).T
        return compare_models(rows, self.rows[0].tasks, self.rows[0].tasks_drawn)

    @property
    def rates(self) -> list[Interval]:
        """The pass rate of each setting over its seeds."""
        return [self.comparison.means.share(i) for i in range(len(self.settings))]

    @property
    def gains(self) -> list[Interval | None]:
        """The gain of each setting over the best SFT, with its uncorrected interval; None for SFT."""
        gain, start = self.comparison.uncorrected, self.sft_index
        return [
            None if start is None or s.is_sft else gain(start, i)
            for i, s in enumerate(self.settings)
        ]

    @property
    def marks(self) -> list[str]:
        """`better` or `worse` for each setting that differs from the best SFT after correction, else ''."""
        corrected, start = self.comparison.corrected, self.sft_index
        each = range(len(self.settings))
        return [
            "" if start is None else corrected(start, i).word("better", "worse", "") for i in each
        ]

    @property
    def rivals(self) -> list[int]:
        """The indices of settings that may be as good as the best one; empty if SFT is the best."""
        settings = [i for i, setting in enumerate(self.settings) if not setting.is_sft]
        start = self.sft_index
        return (
            []
            if start is not None and settings[0] > start
            else self.comparison.rivals(settings[0], settings)
        )

    @property
    def sentence(self) -> str:
        models = [Contender(shortened(s.name), s.rate, s.is_sft) for s in self.settings]
        return conclusion(models, f"passes {{}} of {self.prompts}", self.comparison)

    @property
    def front(self) -> list[bool]:
        """True for each setting on the Pareto front: no other has a higher rate at the same KL or less."""
        places = [(s.rate, s.kl) for s in self.settings]
        return [
            not any(r >= rate and k <= kl and (r, k) != (rate, kl) for r, k in places)
            for rate, kl in places
        ]

    @property
    def note(self) -> str:
        """The warning that the rate of the best setting is optimistic, with the command that measures it again."""
        chosen_from = [setting for setting in self.settings if not setting.is_sft]
        first, count = chosen_from[0], len(chosen_from)
        if count == 1:
            return ""
        overrides = [
            o for o in arguments_of(first.runs[0].command) if not o.startswith("answer.split=")
        ]
        once = provenance.command("report", overrides)
        note = f"The rate of the best of {count} settings is optimistic, as the same {self.split} prompts chose it. "
        if self.split == "test":
            return (
                note
                + "Choose with answer.split=validation, and evaluate the chosen setting on test once."
            )
        if self.settings[0].is_sft:
            return f"{note}Evaluate on test once, if at all."
        return (
            f"{note}Evaluate the chosen setting on test once; for {shortened(first.name)}: {once}"
        )


def differences(settings: list[Setting], title: str) -> SettingDifferences:
    """Return the differences between settings in what concerns those with this title (`DPO`). A key that only some
    titles have, such as `dpo.beta`, is left out if it has the same value in all of its settings."""
    rows = [without_seeds(setting.runs[0].settings) for setting in settings]
    keys_by_title: dict[str, set[str]] = {}
    for setting, row in zip(settings, rows, strict=True):
        keys_by_title.setdefault(setting.title, set()).update(row)
    own = [row for setting, row in zip(settings, rows, strict=True) if setting.title == title]
    shared = set.intersection(*keys_by_title.values())
    names = {
        key
        for key in keys_by_title[title]
        if key in shared or len({row.get(key) for row in own}) > 1
    }
    return SettingDifferences(
        [{key: value for key, value in row.items() if key in names} for row in rows]
    )


def shortened(name: str) -> str:
    return name if len(name) <= NAMED else f"{name[:NAMED]}…"


def group_by_prompts(rows: list[Row]) -> list[Group]:
    prompt_sets = dict.fromkeys(row.prompts for row in rows)
    groups = [Group([row for row in rows if row.prompts == prompts]) for prompts in prompt_sets]
    return sorted(groups, key=lambda group: -len(group.settings))
