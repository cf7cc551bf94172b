"""Compare models measured on the same prompts: their settings, their results, and which one is best."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.commands.node_settings import settings_text, varying
from stages.config.errors import shortened
from stages.evaluation.best_model import Comparison, Contender, compare_models, conclusion
from stages.evaluation.claims import difference
from stages.evaluation.intervals import Interval
from stages.extras.compare.measured import MeasuredModel
from stages.store.typed_json import FLAT

NAMED = 90  # characters; longer settings are cut off in a sentence
Runs = list[MeasuredModel]  # of one setting: they differ in seeds alone


@dataclass
class ComparedSetting:
    """A model (policy, control, arm or SFT) with its settings. Figures are means over its runs, which differ in seeds.
    `gain_over_sft`: over the best SFT, with the uncorrected interval; None for SFT. `mark`: `better` or `worse` than
    that when corrected, or why nothing can be said. `kl`: nats per token from SFT. `best_at_kl`: no other setting has a
    higher rate at the same KL or less. `of_extras`: by table, rates by name. `coverage`: pass@k and the share of distinct answers.
    `groups`, `margins`: of held-out pairs by group, as in a MeasuredModel. `is_sft`: others start from it."""

    name: str
    title: str
    pass_rate: Interval
    evaluations: list[str]
    of_extras: dict[str, dict[str, float]] = field(metadata=FLAT)
    groups: dict[str, float]
    margins: dict[str, float]
    is_sft: bool
    kl: float
    mean_tokens: float
    stop_rate: float
    coverage: dict[str, float] = field(default_factory=dict)
    gain_over_sft: Interval | None = None
    mark: str = ""
    best_at_kl: bool = False

    @property
    def short_name(self) -> str:
        return shortened(self.name, NAMED)

    def is_beaten_by(self, other: "ComparedSetting") -> bool:
        """Return whether another setting is better in rate or KL, and not worse in either."""
        rate = self.pass_rate.mean
        other_rate = other.pass_rate.mean
        other_is_worse = other_rate < rate or other.kl > self.kl
        return not other_is_worse and (other_rate > rate or other.kl < self.kl)


@dataclass
class ComparedGroup:
    """Settings measured on the same prompts, the best first. `has_gains`: False if all are SFT models. `tasks_drawn`: the
    intervals are about other tasks."""

    title: str
    split: str
    conclusion: str
    note: str
    has_gains: bool
    tasks_drawn: bool
    settings: list[ComparedSetting]

    def size(self) -> int:
        return len(self.settings)


def compare_groups(rows: list[MeasuredModel]) -> list[ComparedGroup]:
    """Return a comparison for each set of prompts, the one of most settings first. Rehearsals on the same prompts, of which
    nothing can be said, have one of their own."""
    by_prompts: dict[tuple[Any, ...], list[MeasuredModel]] = {}
    for row in rows:
        by_prompts.setdefault((row.prompts, row.note), []).append(row)
    groups = [compare_group(rows) for rows in by_prompts.values()]
    return sorted(groups, key=ComparedGroup.size, reverse=True)


def compare_group(rows: list[MeasuredModel]) -> ComparedGroup:
    """Return the comparison of models on the same prompts."""
    models = runs_of_models(rows)
    first = rows[0]
    outcomes = np.stack([pass_shares(runs) for runs in models], 1)
    comparison = compare_models(outcomes, first.tasks, first.tasks_drawn)
    settings = compared_settings(models, comparison)
    mark_differences(settings, comparison, first.note)
    split, endpoint, _ = first.prompts
    prompts = f"{len(first.tasks)} {split} prompts"
    contenders = [Contender(s.short_name, s.pass_rate.mean, s.is_sft) for s in settings]
    return ComparedGroup(
        title=f"{prompts} of {len({*first.tasks})} tasks ({endpoint})",
        split=split,
        conclusion=conclusion(contenders, prompts, comparison, first.note),
        note=selection_note(settings, split),
        has_gains=any(setting.is_sft for setting in settings),
        tasks_drawn=first.tasks_drawn,
        settings=settings,
    )


def runs_of_models(rows: list[MeasuredModel]) -> list[Runs]:
    """Return the runs of each model: the highest pass rate first, then the lowest KL."""
    by_settings: dict[Any, Runs] = {}
    for row in rows:
        key = (row.role == "sft", *sorted(row.settings.items()))
        by_settings.setdefault(key, []).append(row)
    return sorted(by_settings.values(), key=highest_rate_then_lowest_kl)


def pass_shares(runs: Runs) -> NDArray[Any]:
    """Return the share of runs that passed, for each prompt."""
    return np.mean([row.passed for row in runs], 0)


def highest_rate_then_lowest_kl(runs: Runs) -> tuple[float, float]:
    """Return by what models are sorted: the highest pass rate first, then the lowest KL."""
    return -pass_shares(runs).mean(), fmean(row.figures["kl"] for row in runs)


def compared_settings(models: list[Runs], comparison: Comparison) -> list[ComparedSetting]:
    """Return the figures of each model, in the same order."""
    names = names_of(models)
    only_sft = all(runs[0].role == "sft" for runs in models)
    settings = []
    for i, runs in enumerate(models):
        figures: dict[str, Any] = mean_figures([row.figures for row in runs])
        setting = ComparedSetting(
            name=names[i],
            title=runs[0].title,
            pass_rate=comparison.means.share(i),
            evaluations=[row.fingerprint for row in runs],
            of_extras=mean_tables([row.of_extras for row in runs]),
            coverage=mean_figures([row.coverage for row in runs]),
            groups=mean_figures([row.groups for row in runs]),
            margins=mean_figures([row.margins for row in runs]),
            is_sft=runs[0].role == "sft" and not only_sft,
            **figures,
        )
        settings.append(setting)
    return settings


def mean_figures(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean over runs of each figure that all runs have."""
    means = {}
    for name in runs[0]:
        if all(name in figures for figures in runs):
            means[name] = fmean(figures[name] for figures in runs)
    return means


def mean_tables(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the mean over runs of each figure of every table."""
    return {title: mean_figures([tables[title] for tables in runs]) for title in runs[0]}


def mark_differences(best_first: list[ComparedSetting], comparison: Comparison, note: str) -> None:
    """Set what the differences between settings tell: gains over the best SFT, and the best at their KL. `note`: why
    nothing can be said, or ''."""
    choices = [i for i, setting in enumerate(best_first) if not setting.is_sft]
    sft_models = [i for i, setting in enumerate(best_first) if setting.is_sft]
    if sft_models:
        best_sft = sft_models[0]
        for i in choices:
            best_first[i].gain_over_sft = comparison.uncorrected(best_sft, i)
            claim = difference(comparison.corrected(best_sft, i), note=note)
            best_first[i].mark = claim.says("mark")
    for setting in best_first:
        setting.best_at_kl = not any(map(setting.is_beaten_by, best_first))


def names_of(models: list[Runs]) -> list[str]:
    """Return a name for each model: what differs among the models of its role, such as `dpo.beta=0.1`."""
    names = []
    for runs in models:
        of_same_role = [model for model in models if model[0].role == runs[0].role]
        title = runs[0].title
        line = settings_text(settings_that_differ(runs, of_same_role))
        if runs[0].role == "policy":
            names.append(line or title)
        elif line:
            names.append(f"{title} ({line})")
        else:
            names.append(title)
    return names


def settings_that_differ(runs: Runs, models: list[Runs]) -> dict[str, str]:
    """Return a model's own values of the settings that differ among `models`, of which it is one."""
    own: dict[str, str] = {}
    for name, values in varying([model[0].settings for model in models]).items():
        value = values[models.index(runs)]
        if value is not None:
            own[name] = value
    return own


def selection_note(settings: list[ComparedSetting], split: str) -> str:
    """Return the warning that the rate of the best of several settings is optimistic, and how to measure it again."""
    choices = [setting for setting in settings if not setting.is_sft]
    if len(choices) == 1:
        return ""
    note = f"The rate of the best of {len(choices)} settings is optimistic, as the same {split} prompts chose it."
    if split == "test":
        return f"{note} Choose with answer.split=validation, and evaluate that one on test once."
    return f"{note} Evaluate that one on test once: stage=report with its settings."
