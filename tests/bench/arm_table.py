"""The printed table of arms: differences with intervals, costs, and the arm that the rule of arms.yaml recommends."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from stages.evaluation.estimate import Means, over_seeds
from stages.evaluation.outcomes import Table, average_runs
from stages.store.records import Example
from tests.bench.arm_record import DRAWS, Record
from tests.bench.arm_settings import SFT, TableSettings

MARGIN = 0.03  # by which an arm may be worse than SFT on the prompts that guard
LEVEL = 0.05  # of this test, which is one-sided
EMPTY = "–"
HEADS = (
    *("rate", "seeds", "passes"),
    *("− SFT", "by seed", "corrected"),
    *("− its control", "by seed"),
    *("tokens", "ends", "loops"),
)


def recommended(decides: Table, guards: Table, cpu_seconds: dict[str, float]) -> str:
    """Return the arm that the rule of arms.yaml recommends."""
    guarding = guards.estimate(guards.passed)
    sft = guards.roles.index(SFT)
    qualified = list[str]()
    for column, arm in enumerate(guards.roles):
        if arm != SFT and guarding.not_worse(column, sft, MARGIN) < LEVEL:
            qualified.append(arm)
    if not qualified:
        return SFT
    rates = decides.mean(decides.passed)
    highest = decides.roles.index(max(qualified, key=rates.__getitem__))
    means = decides.estimate(decides.passed)
    level = list[str]()
    for arm in qualified:
        difference = means.difference(highest, decides.roles.index(arm))
        if difference.low <= 0 <= difference.high:
            level.append(arm)
    return min(level, key=cpu_seconds.__getitem__)


@dataclass(frozen=True)
class Printed:
    """A table as it is printed: its record, and the prompts that the answers are to."""

    table: TableSettings
    record: Record
    examples: dict[str, Example]

    def tell(self) -> None:
        for view in self.table.views:
            self.tell_view(view)
        self.tell_costs()
        logging.info("%s", self.recommendation())

    def averaged(self, view: str, arms: Sequence[str], seeds: Sequence[int]) -> Table:
        """Return the arms' outcomes on a view's prompts, averaged over seeds."""
        runs = [self.record.rows(arms, seed) for seed in seeds]
        return average_runs(runs, self.examples).group(*self.table.views[view])

    def difference(self, view: str, arm: str, other: str) -> tuple[str, str]:
        """Return the difference of two arms with its interval over prompts, and with that over seeds if there are
        several."""
        seeds = self.record.seeds_of(arm, other)
        if not seeds or arm == other:
            return EMPTY, EMPTY
        over_prompts = self.means(view, arm, other, seeds).difference(0, 1).points()
        by_seed = [self.means(view, arm, other, [seed]).change(0, 1).mean for seed in seeds]
        if len(seeds) < 2:
            return over_prompts, EMPTY
        prompts = len(self.averaged(view, [arm], seeds).prompts)
        return over_prompts, over_seeds(by_seed, 1 / prompts).points()

    def means(self, view: str, arm: str, other: str, seeds: Sequence[int]) -> Means:
        """Return the means of two arms, in this order."""
        table = self.averaged(view, [arm, other], seeds)
        columns = [table.roles.index(arm), table.roles.index(other)]
        return table.estimate(table.passed[:, columns])

    def corrected(self, view: str, arm: str) -> str:
        """Return the bounds of an arm's difference from SFT for as many comparisons as the table has (Bonferroni)."""
        seeds = self.record.seeds_of(arm, SFT)
        if not seeds or arm == SFT:
            return EMPTY
        comparisons = len(self.table.arms) - 1
        means = self.means(view, arm, SFT, seeds)
        return means.difference(0, 1, 1 - 0.05 / comparisons).bounds()

    def tell_view(self, view: str) -> None:
        lines = [[view, *HEADS]]
        for arm in self.table.arms:
            cells = [EMPTY] * len(HEADS)
            if self.record.of_arm(arm):
                cells = self.cells(view, arm)
            lines.append([self.table.arms[arm].title, *cells])
        tell_lines(lines)

    def cells(self, view: str, arm: str) -> list[str]:
        """Return an arm's line in the table of a view."""
        seeds = self.record.seeds_of(arm)
        answered = self.averaged(view, [arm], seeds)
        rate = self.record.of_arm(arm)[0].rate
        control = self.table.arms[arm].control or arm
        return [
            f"{rate or EMPTY}",
            str(len(seeds)),
            f"{100 * answered.passed.mean():.1f}% of {len(answered.prompts)}",
            *self.difference(view, arm, SFT),
            self.corrected(view, arm),
            *self.difference(view, arm, control),
            f"{answered.tokens.mean():.1f}",
            f"{100 * answered.stopped.mean():.1f}%",
            f"{100 * self.share_of_loops(view, arm):.1f}%",
        ]

    def share_of_loops(self, view: str, arm: str) -> float:
        """Return the share of an arm's answers to a view's prompts that loop."""
        groups = self.table.views[view]
        rows = [row for row in self.record.outcomes if row.role == arm]
        return fmean(row.loops for row in rows if self.examples[row.prompt_id].group in groups)

    def tell_costs(self) -> None:
        lines = [
            ["arm", "KL, nats a token", f"pass@{DRAWS}", f"distinct of {DRAWS}", "CPU-seconds"]
        ]
        for name, arm in self.table.arms.items():
            trainings = self.record.of_arm(name)
            cells = [EMPTY] * 4
            if trainings:
                divergences = [each.kl for each in trainings if each.kl is not None]
                cost = self.record.cpu_seconds(name)
                cells = [
                    f"{fmean(divergences):.3f}" if divergences else EMPTY,
                    f"{100 * fmean(each.pass_at_draws for each in trainings):.1f}%",
                    f"{fmean(each.distinct for each in trainings):.2f}",
                    EMPTY if cost is None else f"{cost:.0f}",
                ]
            lines.append([arm.title, *cells])
        tell_lines(lines)

    def recommendation(self) -> str:
        """Return the sentence with the arm that the rule recommends, or why it recommends none yet."""
        arms = [*self.table.arms]
        seeds = self.record.seeds_of(*arms)
        costs = {arm: self.record.cpu_seconds(arm) for arm in arms}
        measured = {arm: cost for arm, cost in costs.items() if cost is not None}
        missing = [arm for arm in arms if arm != SFT and arm not in measured]
        if not seeds:
            return "Recommended: nothing yet, since no seed has all arms."
        if missing:
            return (
                f"Recommended: nothing yet, since the cost of {', '.join(missing)} is not measured."
            )
        decides, guards = (
            self.averaged(view, arms, seeds) for view in (self.table.decides, self.table.guards)
        )
        rates = decides.mean(decides.passed)
        trained = sorted(measured.keys() - {SFT}, key=rates.__getitem__, reverse=True)
        first, second = [*trained, SFT][:2]
        lead, _ = self.difference(self.table.decides, first, second)
        chosen = recommended(decides, guards, measured)
        title_by_arm = {arm: block.title for arm, block in self.table.arms.items()}
        return (
            f"Recommended: {title_by_arm[chosen]}. {self.table.decides}: {title_by_arm[first]} − "
            f"{title_by_arm[second]} is {lead}."
        )


def tell_lines(lines: Iterable[Sequence[str]]) -> None:
    """Tell the lines of a table in Markdown, the first of which are its heads."""
    for number, cells in enumerate(lines):
        logging.info("| %s |", " | ".join(cells))
        if number == 0:
            logging.info("|%s", "---|" * len(cells))
    logging.info("")
