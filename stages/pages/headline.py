"""What a reader needs first, in sentences: did it help, on what, by how much, does it carry over, and how far to trust
it. A number never stands without what it is of."""

from typing import Any

from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import ENOUGH_PROMPTS, ENOUGH_TASKS, PRIMARY, effect
from stages.store.numbers import points, signed

# Groups of prompts that a verdict may be of, or that it should be seen beside: of what, and of which. `{it}`: whose
# training is meant.
SCOPES = {
    "seen tasks": ("task", "that {it} was trained on"),
    "unseen tasks": ("task", "that it never saw"),
    "untrained kinds": ("kind", "of constraint that nothing was trained on"),
    "trained kinds": ("kind", "of constraint that {it} was trained on"),
    "validation kinds": ("kind", "of constraint that settings were chosen by"),
}

STEPS = ("sft-base", PRIMARY, "policy-base")


class Headline:
    """The sentences at the top of a report.

    results: of the evaluation. confidence: of its intervals. runs: one per seed. trained: what was trained on tasks
    like those of the test: `it` (the policy), SFT alone, or nothing. more_seeds: the command that trains from others.
    """

    def __init__(
        self, results: dict[str, Any], confidence: float, runs: int, trained: str = "it", more_seeds: str = ""
    ):
        self.results, self.groups, self.models = results, results["groups"], results["models"]
        self.primary = self.groups[results["endpoint"]]
        self.level = f"{confidence:.0%} interval"
        self.runs = runs
        self.trained, self.more_seeds = trained, more_seeds

    @property
    def delta(self) -> Interval:
        return Interval(**self.primary[PRIMARY])

    @property
    def helped(self) -> bool:
        return self.delta.low > 0

    @property
    def verdict(self) -> str:
        """The primary endpoint: what came out, on what, from where to where."""
        word = effect(self.delta)
        before, after = (self.primary[role] for role in ("sft", "policy"))
        changed = f"{points(self.delta.mean)} points, {self.level} {self.delta.bounds()}"
        sft, policy = self.models["sft"], self.models["policy"]
        return (
            f"{policy} {word} on {self.scope(self.results['endpoint'])}: {sft} passes {rate(before)} of "
            f"{self.primary['prompts']:,} held-out prompts, {policy} "
            f"{rate(after, changed)}{self.results.get('endings', '')}."
        )

    @property
    def counts(self) -> str:
        """What happened to these very prompts; the interval is of others."""
        gained, lost = self.primary["gained"], self.primary["lost"]
        others = "other tasks like these" if self.primary["tasks_drawn"] else "other prompts of these tasks"
        return (
            f"Of these prompts {gained:,} pass that did not, and {lost:,} no longer do; the interval says what "
            f"{others} would give."
        )

    @property
    def elsewhere(self) -> list[str]:
        """Whether it carries over: a sentence for each other group that a verdict could be of."""
        names = [name for name in SCOPES if name in self.groups and name != self.results["endpoint"]]
        return [f"On {self.scope(name)}: {self.change(self.groups[name], PRIMARY)}." for name in names]

    @property
    def forgotten(self) -> str:
        """Whether answers known to be right became less likely, by more than chance; else ''."""
        scored = self.results["references"]
        if not scored or (delta := Interval(**scored[PRIMARY])).high >= 0:
            return ""
        change = f"{nats(delta.mean)} nats per token ({nats(delta.low)} to {nats(delta.high)})"
        return (
            f"{self.models['policy']} finds the reference answers of {scored['prompts']} test prompts less likely "
            f"than {self.models['sft']}: {change}."
        )

    @property
    def caution(self) -> str:
        """How far the verdict reaches."""
        told = []
        if self.runs == 1:
            told.append(
                "One seed tells of these two checkpoints, not yet of the recipe: "
                f"{self.more_seeds} trains from two more."
            )
        if self.primary["tasks"] < ENOUGH_TASKS:
            told.append(f"Fewer than {ENOUGH_TASKS} tasks: too few to say it of any others.")
        if self.primary["prompts"] < ENOUGH_PROMPTS:
            told.append(f"Fewer than {ENOUGH_PROMPTS} prompts: a small effect would go unseen.")
        return " ".join(told)

    @property
    def control(self) -> str:
        """Whether preferences gave what the chosen answers alone would not; '' without a control."""
        if "control" not in self.models:
            return ""
        change = self.change(self.primary, "policy-control")
        return f"Against the control, {self.models['sft']} trained further on the chosen answers alone: {change}."

    @property
    def steps(self) -> str:
        """What each model changed on the primary endpoint."""
        told = [
            f"{self.results['differences'][name]} {points(self.primary[name]['mean'])} "
            f"({Interval(**self.primary[name]).bounds()})"
            for name in STEPS
        ]
        return f"On {self.results['endpoint']}, in points: {', '.join(told)}."

    @property
    def form(self) -> str:
        """How much of a pass rate is form; '' where prompts have no reference."""
        held = self.primary["containing"]
        if not held:
            return ""
        shares = ", ".join(f"{title} {held[role]['mean']:.1%}" for role, title in self.models.items())
        passed = ", ".join(f"{self.primary[role]['mean']:.1%}" for role in self.models)
        return f"Answers that contain the reference, whatever their form: {shares}. In the form asked for: {passed}."

    def scope(self, name: str) -> str:
        what, which = SCOPES[name]
        return f"{counted(self.groups[name]['tasks'], what)} {which.format(it=self.trained)}"

    def change(self, group: dict[str, Any], name: str) -> str:
        """`no measurable change (−1.7 points, −7.1 to +3.4; 240 prompts)`"""
        delta = Interval(**group[name])
        word = "better" if delta.low > 0 else "worse" if delta.high < 0 else "no measurable change"
        if name != PRIMARY and word == "no measurable change":
            word = "no measurable difference"
        if group["note"]:
            word = group["note"]
        prompts = f"{group['prompts']:,} prompts"
        return f"{word} ({points(delta.mean)} points, {delta.bounds()}; {prompts})"


def rate(share: dict[str, float], more: str = "") -> str:
    """`31.6%`; of none and of all, how many it could be: `0 (up to 0.9%)`. `more` stands in the same brackets."""
    told, limit = f"{share['mean']:.1%}", ""
    if share["mean"] == 0:
        told, limit = "0", f"up to {share['high']:.1%}"
    if share["mean"] == 1:
        told, limit = "all", f"{share['low']:.1%} or more"
    beside = "; ".join(filter(None, (limit, more)))
    return f"{told} ({beside})" if beside else told


def counted(number: int, noun: str) -> str:
    """`1 task`, `35 tasks`"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nats(difference: float) -> str:
    return signed(difference, "{:+z.2f}")
