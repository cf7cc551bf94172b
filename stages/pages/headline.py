"""The sentences of a report: the scope of its verdict, the conclusion of each section of results, and the next steps.
Every number comes with the prompts or pairs that it is about."""

from collections.abc import Sequence

from stages.config.blocks.labels import HUMAN
from stages.config.commands import COMMANDS
from stages.config.extras import EXTRAS
from stages.evaluation import claims
from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.diagnosis.effects import TEST_PROMPTS
from stages.evaluation.diagnosis.finding import NUMBER, write_number
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import ENOUGH_TASKS, FEWEST_PAIRS, OF_ARM, OUTSIDE, arms
from stages.evaluation.results import JudgedComparison, Learnt, Results, Row, Waiting
from stages.pages.control_name import CONTROL
from stages.pages.glossary import TEXTS
from stages.store.manifest import Manifest, command_of

# For each group of prompts, the noun that counts its tasks and a clause.
SCOPES: dict[str, tuple[str, str]] = {
    group: (noun, clause) for group, (noun, clause) in TEXTS["scopes"].items()
}
BY = {
    "human": "people",
    "judge": "a judge",
    "reward_model": "a reward model",
    "ensemble": "an ensemble",
    "own": "your labeler",
}
ONE_SEED = "One seed: other seeds are not in this interval."
Step = tuple[str, str]  # a sentence, and its command or '' for advice alone
MOST_STEPS = 2  # on the page
TOY = " scale=toy"  # in the command of a rehearsal
JUDGE = "eval/judged=judge 'eval.judged.endpoints=[{base_url: URL, model: NAME}]'"


class Headline:
    """Sentences on the results of an evaluation. `seeds`: the number of seeds, 0 if the run trained nothing.
    `trained`: the model trained on tasks like those of the test, which is `it` (the policy), SFT's title, or `nothing
    here`. `learnt`: the results on held-out pairs of all seeds, this run's first."""

    def __init__(
        self,
        results: Results,
        seeds: int = 1,
        trained: str = "it",
        learnt: Sequence[Learnt | None] = (),
        level: str = "95%",
        elsewhere: bool = False,
    ):
        self.results, self.groups, self.models = results, results.groups, results.models
        self.policy, self.before = results.policy, results.title_before
        self.main, self.primary = results.main_difference, results.primary
        self.seeds, self.runs_learnt, self.level = seeds, learnt, level
        self.trained = self.policy if trained == "it" else trained
        self.elsewhere = elsewhere  # the policy was trained elsewhere

    def about(self) -> str:
        """Return the verdict's prompts or pairs, the rates behind it, and its limits."""
        sentences, limits, parts = list[str](), list[str](), self.results.gives_verdict
        if "learnt" in parts:
            sentences.append(
                f"Whether {self.policy} was trained on these preferences is not known here."
                if self.elsewhere
                else f"What is held out are preferences that {self.policy} was not trained on."
            )
        if self.primary and "checks" in parts:
            before, after = (rate(self.primary[role]) for role in (self.results.before, "policy"))
            prompts = f"{self.primary.prompts:,} held-out prompts of {self.scope(str(self.results.endpoint))}"
            sentences.append(f"Of {prompts}, {self.before} passes {before}, {self.policy} {after}.")
            if not self.primary.set and self.primary.tasks < ENOUGH_TASKS:
                limits.append(f"Fewer than {ENOUGH_TASKS} tasks say nothing about other tasks.")
        sentences.append(f"All intervals have {self.level} confidence.")
        if self.seeds == 1:
            sentences.append(ONE_SEED)
        return " ".join(sentences + limits)

    def checks(self) -> str:
        """Return the changes on the primary endpoint and on the other groups; '' without checks."""
        if not self.primary:
            return ""
        draws = (
            "other tasks like these" if self.primary.tasks_drawn else "other prompts of these tasks"
        )
        sentences = [
            f"On {self.primary.set or self.results.endpoint}: {self.change_clause(self.primary, self.main)}. Only {self.policy} passes "
            f"{self.primary.gained:,}, only {self.before} {self.primary.lost:,}. The intervals cover {draws}."
        ]
        names = [name for name in SCOPES if name in self.groups and name != self.results.endpoint]
        sentences += [
            f"On {self.scope(name)}: {self.change_clause(self.groups[name], self.main)}."
            for name in names
        ]
        if "control" in self.models:
            control = self.results.control_in_words
            if self.results.has_plain_control:
                control = f"{control} on the chosen answers"
            sentences.append(
                f"Against {control}: {self.change_clause(self.primary, 'policy-control')}."
            )
        for arm in arms(self.models):
            gain, difference = (
                self.change_clause(self.primary, name) for name in (f"{arm}-sft", f"policy-{arm}")
            )
            sentences.append(
                f"{self.models[arm]} over {self.before}: {gain}; {self.policy} over it: {difference}."
            )
            control = f"{OF_ARM}{arm}"
            if control in self.models:
                over_control = self.change_clause(self.primary, f"{arm}-{control}")
                sentences.append(f"{self.models[arm]} over {self.models[control]}: {over_control}.")
        return " ".join(sentences)

    def outside_sets(self) -> str:
        endpoint = self.results.endpoint
        names = [n for n in self.groups if n.startswith(OUTSIDE) and n != endpoint]
        return " ".join(
            f"{n.removeprefix(OUTSIDE)}: {self.change_clause(self.groups[n], self.main)}."
            for n in names
        )

    def learnt(self) -> str:
        """Return how often the policy favours the chosen answer; '' without held-out pairs."""
        learnt = self.results.learnt
        if not learnt:
            return ""
        sentences = [f"{claims.learnt_clause(self.results, learnt)}."]
        if claims.has_control(learnt):
            over_control = claims.learnt_over_control(learnt)
            sentences.append(
                f"Against {CONTROL} on the chosen answers: {over_control.with_figure('over_plain', model=self.policy, control=CONTROL)}."
            )
        if seeds := [run.claimed.ratio["policy"].mean for run in self.runs_learnt[1:] if run]:
            sentences.append(f"Other seeds: {', '.join(f'{share:.1%}' for share in seeds)}.")
        if self.seeds == 1:
            sentences.append(ONE_SEED)
        sentences.append("A gain on preferences does not show that answers are better.")
        return " ".join(sentences)

    def comparison(self, judged: JudgedComparison | Waiting) -> str:
        """Return the judgements of the policy's answers against those of one opponent."""
        opposed = judged.opposed
        against = f"Against {opposed.title}, by {BY.get(opposed.labeler, opposed.labeler)}: "
        if isinstance(judged, Waiting):
            return f"{against}{judged.waiting:,} comparisons wait for people. {detectable_clause(judged.detectable)}"
        rates = judged.rates
        claim = claims.judged(judged)
        sentence = f"{self.policy} {claim.figure} of {claim.scope}"
        if rates.people:
            sentence += f", {rates.people.win_rate.share()} by {rates.people.by}"
        if rates.matched:
            sentence += f", {rates.matched.win_rate.share()} at equal lengths"
        return f"{against}{claim.answer}. {sentence}. {detectable_clause(rates.detectable)}"

    def behaviour(self) -> str:
        """Return the length and endings of answers, KL, and a loss of likelihood of the reference answers."""
        sentences, first = [], self.results.before
        figures = self.results.behaviour
        if figures.mean_tokens:
            tokens, ended, looping = figures.mean_tokens, figures.stop_rate, figures.loops
            sentences.append(
                f"On {self.results.shown_on} an answer of {self.policy} has {tokens['policy']:.1f} tokens "
                f"({self.before} {tokens[first]:.1f}); {ended['policy']:.1%} end by themselves ({ended[first]:.1%}), "
                f"{looping['policy']:.1%} repeat in a loop ({looping[first]:.1%})."
            )
        if self.results.kl:
            distance = write_number(NUMBER, self.results.kl["policy"].per_token)
            sentences.append(f"KL from {self.before}: {distance} nats per token.")
        scored = self.results.references
        if scored and claims.difference(scored.difference(self.main)).is_worse:
            delta = scored.difference(self.main)
            sentences.append(
                f"The reference answers of {scored.prompts} prompts are less likely under {self.policy} than "
                f"under {self.before}: in nats {delta.per('token')}."
            )
        return " ".join(sentences)

    def form(self) -> str:
        """Return the rates with the reference in any form; '' if prompts have no reference."""
        if not self.primary or not self.primary.containing:
            return ""
        containing = self.primary.containing
        shares = ", ".join(
            f"{title} {containing[role].mean:.1%}" for role, title in self.models.items()
        )
        passed = ", ".join(f"{self.primary[role].mean:.1%}" for role in self.models)
        return f"Answers that contain the reference in any form: {shares}. In the requested form: {passed}."

    def scope(self, name: str) -> str:
        if name.startswith(OUTSIDE):
            return name.removeprefix(OUTSIDE)
        what, which = SCOPES[name]
        return f"{counted(self.groups[name].tasks, what)} {which.format(it=self.trained)}"

    def change_clause(self, group: Row, name: str) -> str:
        """Return a difference as text: `no measurable change (−1.7 points, −7.1 to +3.4; 240 prompts)`."""
        question = "change" if name == self.main else "difference"
        return claims.change(group, name).with_figure(question)


def detectable_clause(detectable: float) -> str:
    return f"This number can detect a win rate that is {100 * detectable:.1f} points from 50%."


def rate(share: Interval) -> str:
    """Return a share as text: `31.6%`; none or all with the other bound: `0 (up to 0.9%)`."""
    if share.mean == 0:
        return f"0 (up to {share.high:.1%})"
    return f"all ({share.low:.1%} or more)" if share.mean == 1 else f"{share.mean:.1%}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 task`, `35 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def uses_of_model(run: str) -> list[Step]:
    """Return what may be done with a trained model, with the commands. `run`: the run's command."""
    return [
        (command.next_step, f"{run} stage={name}")
        for name, command in COMMANDS.items()
        if command.next_step
    ]


def run_command(evaluation: Manifest) -> str:
    """Return the command of the whole run, from the manifest of its evaluation."""
    return command_of(evaluation).replace(" stage=eval", "", 1)


def next_steps(
    results: Results, evaluation: Manifest, seeds: list[int], why: Diagnosis | None
) -> list[Step]:
    """Return the most useful steps, the best first. `evaluation`: the manifest of the evaluation, with its command.
    `seeds`: the seeds trained, none without training."""
    run, steps = run_command(evaluation), list[Step]()
    if results.rehearsal and TOY in run:
        return [("To train on the real model, leave out scale=toy:", run.replace(TOY, "", 1))]
    waiting = sum(each.waiting for each in results.judged.values() if isinstance(each, Waiting))
    if waiting:
        steps.append(
            (f"{waiting:,} comparisons wait for people. To ask them:", f"{run} stage=versus")
        )
    if "learnt" in results.gives_verdict and results.learnt:
        if not results.judged:
            people = f", or people (eval/judged={HUMAN})" if HUMAN in EXTRAS else ""
            words = f"Pairs do not show if answers are better. Ask a judge{people}:"
            steps.append((words, f"{run} {JUDGE}"))
        if results.learnt.claimed.pairs < FEWEST_PAIRS:
            key = "pairs" if "pairs" in evaluation["inputs"] else "unpaired"
            words = (
                f"held-out rows are too few to say. Add rows, or raise {key}.validation_fraction."
            )
            steps.append((f"{results.learnt.claimed.pairs} {words}", ""))
    doubt = why is not None and (not why.helped or bool(results.cautions))
    for i, finding in enumerate(why.out_of_range if why and doubt else []):
        if (i == 0 or finding.quantity == TEST_PROMPTS) and (cause := finding.cause):
            steps.append((f"Perhaps {cause.clause}. Try {cause.advice}.", ""))
    use = uses_of_model(run)
    steps += [] if doubt else use[:1]
    if len(seeds) == 1:
        steps.append(
            (
                "To test the recipe, train two more seeds:",
                f"{run} 'seeds=[{seeds[0] + 1},{seeds[0] + 2}]'",
            )
        )
    return (steps or use[:1] if doubt else steps + use[1:])[:MOST_STEPS]
