"""The sentences of a report: what its verdict is about, and the conclusion of each section of results. A number
never stands without what it is of."""

from typing import Any

from stages.evaluation.diagnosis.finding import NUMBER, written
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import ENOUGH_TASKS
from stages.store.numbers import points

# Groups of prompts that a verdict may be of, or that it should be seen beside: of what, and of which. `{it}`: whose
# training is meant.
SCOPES = {
    "seen tasks": ("task", "that {it} was trained on"),
    "unseen tasks": ("task", "kept out of training"),
    "untrained kinds": ("kind", "of constraint that nothing was trained on"),
    "trained kinds": ("kind", "of constraint that {it} was trained on"),
    "validation kinds": ("kind", "of constraint that settings were chosen by"),
}
OUTSIDE = "outside: "  # begins the names of groups that are labelled sets of somebody's
BY = {"human": "people", "judge": "a judge", "reward_model": "a reward model", "ensemble": "an ensemble"}
HALF = 0.5  # what a coin gets right of two


class Headline:
    """Sentences on the results of an evaluation.

    results: of the evaluation. learnt: of the runs of all seeds, this one's first. trained: what was trained on tasks
    like those of the test: `it` (the policy), SFT alone, or `nothing here`. seeds: how many the run has; 0 where it
    trained nothing.
    """

    def __init__(self, results: dict[str, Any], seeds: int = 1, trained: str = "it", learnt: Any = ()):
        self.results, self.groups, self.models = results, results["groups"], results["models"]
        self.policy, self.before = self.models["policy"], self.models[results["before"]]
        self.main, self.primary = results["main_difference"], results["primary"]
        self.seeds, self.trained, self.runs_learnt = seeds, trained, learnt

    def about(self) -> str:
        """Return what the verdict is of, from where to where, and how far it reaches."""
        sentences, parts = list[str](), self.results["gives_verdict"]
        if "learnt" in parts:
            sentences.append(f"Held-out pairs are preferences that {self.policy} was not trained on.")
        if "checks" in parts:
            before, after = (rate(self.primary[role]) for role in (self.results["before"], "policy"))
            prompts = f"{self.primary['prompts']:,} held-out prompts of {self.scope(self.results['endpoint'])}"
            sentences.append(f"Of {prompts}, {self.before} passes {before}, {self.policy} {after}.")
        if self.seeds == 1:
            sentences.append("One seed tells of these two checkpoints, not yet of the recipe.")
        if "checks" in parts and self.primary["tasks"] < ENOUGH_TASKS:
            sentences.append(f"Fewer than {ENOUGH_TASKS} tasks: too few to say it of any others.")
        return " ".join(sentences)

    def checks(self) -> str:
        """Return what became of the primary endpoint's prompts, and whether it carries over; '' without checks."""
        if not self.primary:
            return ""
        draws = "other tasks like these" if self.primary["tasks_drawn"] else "other prompts of these tasks"
        sentences = [
            f"On {self.results['endpoint']}: {self.change(self.primary, self.main)}. {self.primary['gained']:,} pass "
            f"that did not, and {self.primary['lost']:,} no longer do; the interval says what {draws} would give."
        ]
        names = [name for name in SCOPES if name in self.groups and name != self.results["endpoint"]]
        sentences += [f"On {self.scope(name)}: {self.change(self.groups[name], self.main)}." for name in names]
        if "control" in self.models:
            change = self.change(self.primary, "policy-control")
            sentences.append(
                f"Against the control, {self.before} trained further on the chosen answers alone: {change}."
            )
        return " ".join(sentences)

    def outside(self) -> str:
        names = [name for name in self.groups if name.startswith(OUTSIDE)]
        changes = [f"{n.removeprefix(OUTSIDE)}: {self.change(self.groups[n], self.main)}." for n in names]
        return " ".join(changes)

    def learnt(self) -> str:
        """Return how often the policy favours the chosen answer; '' where no pairs are held out."""
        if not (learnt := self.results["learnt"]):
            return ""
        ratio = Interval(**learnt["ratio"]["policy"])
        word = "more often than" if ratio.low > HALF else "less often than" if ratio.high < HALF else "not clear of"
        seeds = ", ".join(f"{run['ratio']['policy']['mean']:.1%}" for run in self.runs_learnt[1:] if run)
        return (
            f"{self.policy}'s log-ratio to {self.before} favours the chosen answer in "
            f"{within(learnt['ratio']['policy'])} of {learnt['pairs']:,} held-out pairs, "
            f"{learnt['note'] or f'{word} the 50% of a coin'}{f' (other seeds: {seeds})' if seeds else ''}. That is "
            "what it learnt of these preferences; it does not say that its answers are better."
        )

    def comparison(self, judged: dict[str, Any]) -> str:
        """Return what was judged of the policy's answers beside those of one other."""
        against = f"Against {judged['title']}, by {BY.get(judged['labeler'], judged['labeler'])}: "
        detectable = f"So many can show a win rate that is {100 * judged['detectable']:.1f} points from 50%."
        if "waiting" in judged:
            return f"{against}{judged['waiting']:,} comparisons wait for people. {detectable}"
        sentence = f"{self.policy} wins {within(judged['win_rate'])} of {judged['judged']:,} comparisons"
        if judged["people"]:
            sentence += f", {within(judged['people']['win_rate'])} with the word of {judged['people']['by']}"
        sentence += f", {within(judged['matched']['win_rate'])} at like lengths" if judged["matched"] else ""
        return f"{against}{judged['effect']}. {sentence}. {detectable}"

    def behaviour(self) -> str:
        """Return how long answers are, and how they end; what else became worse without being asked for."""
        sentences, first = [], self.results["before"]
        if self.results["mean_tokens"]:
            tokens, ended, looping = (self.results[name] for name in ("mean_tokens", "stop_rate", "loops"))
            sentences.append(
                f"On {self.results['shown_on']} an answer of {self.policy} has {tokens['policy']:.1f} tokens "
                f"({self.before} {tokens[first]:.1f}); {ended['policy']:.1%} end by themselves ({ended[first]:.1%}), "
                f"{looping['policy']:.1%} go round in a loop ({looping[first]:.1%})."
            )
        if self.results["kl"]:
            distance = written(NUMBER, self.results["kl"]["policy"]["per_token"])
            sentences.append(f"KL from {self.before}: {distance} nats per token.")
        scored = self.results["references"]
        if scored and (delta := Interval(**scored[self.main])).high < 0:
            sentences.append(
                f"{self.policy} finds the reference answers of {scored['prompts']} test prompts less likely than "
                f"{self.before}: in nats {delta.per('token')}."
            )
        return " ".join(sentences)

    def form(self) -> str:
        """Return how much of a pass rate is form; '' where prompts have no reference."""
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
        if name != self.main and word == "no measurable change":
            word = "no measurable difference"
        if group["note"]:
            word = group["note"]
        prompts = f"{group['prompts']:,} prompts"
        return f"{word} ({points(delta.mean)} points, {delta.bounds()}; {prompts})"


def within(share: dict[str, float]) -> str:
    """`61.0% (56.2% to 65.7%)`"""
    return f"{share['mean']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def rate(share: dict[str, float]) -> str:
    """`31.6%`; of none and of all, how many it could be: `0 (up to 0.9%)`."""
    if share["mean"] == 0:
        return f"0 (up to {share['high']:.1%})"
    return f"all ({share['low']:.1%} or more)" if share["mean"] == 1 else f"{share['mean']:.1%}"


def counted(number: int, noun: str) -> str:
    """`1 task`, `35 tasks`"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
