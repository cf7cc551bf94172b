"""Claims: what the interval of an effect says, in words. No other module turns an interval into a word.

A claim has a word, a figure, a scope and a note. Pages, cards, commands and messages print claims: they ask one for its
answer to a question, and claims.yaml has the answers. The note wins: a claim with a note says the note and nothing
else, wherever it is printed. A new arm or measure makes claims here, and every page can print them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from stages.config.blocks.evaluation import REFERENCES
from stages.config.exit_codes import GateCode
from stages.config.installation import read_beside
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import ENOUGH_PROMPTS
from stages.evaluation.results import (
    Intervals,
    Judged,
    Learnt,
    MatchedRate,
    Results,
    Retained,
    Row,
    Waiting,
)
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.truncation import MOST

ANSWERS: dict[str, dict[str, str]] = read_beside(__file__)
HALF = 0.5  # the share right by chance
REHEARSAL = "a rehearsal"  # the note on what a model with random weights before training says
ENOUGH_JUDGED = 20  # fewest judged prompts for a verdict
LABELERS = {
    "human": "People",
    "judge": "The judge",
    "reward_model": "The reward model",
    "own": "Your labeler",
}


class Word(StrEnum):
    """The word for an effect. `results.json` holds the values of judgements."""

    better = "better"
    worse = "worse"
    same = "no measurable difference"
    preferred = "preferred, perhaps for length"
    rejected = "rejected, perhaps for length"
    too_few = "too few to say"
    not_worse = "not worse"
    unknown = "cannot tell"
    incomparable = "not comparable"


GATE_WORDS = {
    GateCode.passes: Word.not_worse,
    GateCode.worse: Word.worse,
    GateCode.other_prompts: Word.incomparable,
    GateCode.cannot_tell: Word.unknown,
}


@dataclass(frozen=True)
class Claim:
    """The statement that an interval makes on one effect. `figure`: the effect with its interval; `scope`: the prompts, pairs or
    comparisons that it is about; `note`: why nothing can be said, or ''."""

    word: Word
    figure: str
    scope: str
    note: str = ""

    def says(self, question: str, **names: str) -> str:
        """Return the claim's answer to a question of claims.yaml. `names`: what the answer names."""
        if self.note:
            return self.note
        return ANSWERS[question][self.word.name].format(figure=self.figure, **names)

    def with_figure(self, question: str) -> str:
        """Return the answer with the figure behind it: `better (+8.6 points, +2.6 to +15.8; 800 prompts)`."""
        if self.note:
            return self.note
        behind = "; ".join(filter(None, (self.figure, self.scope)))
        return f"{self.says(question)} ({behind})"

    @property
    def is_better(self) -> bool:
        return self.word is Word.better and not self.note

    @property
    def is_worse(self) -> bool:
        return self.word is Word.worse and not self.note

    @property
    def is_same(self) -> bool:
        return self.word is Word.same and not self.note

    @property
    def state(self) -> str:
        """The state of a lamp: good, bad or none."""
        if self.is_better or (self.word is Word.not_worse and not self.note):
            return "good"
        return "bad" if self.is_worse else "none"


def word_of(interval: Interval, neutral: float = 0.0) -> Word:
    """Return what an interval says of an effect. `neutral`: the value without any effect."""
    if interval.low > neutral:
        return Word.better
    return Word.worse if interval.high < neutral else Word.same


def difference(delta: Interval, scope: str = "", note: str = "") -> Claim:
    """Return the claim of a difference of shares, of which more is better."""
    return Claim(word_of(delta), f"{points(delta.mean)} points, {delta.bounds()}", scope, note)


def change(row: Row, name: str) -> Claim:
    """Return the claim of a difference of pass rates, by its name."""
    return difference(row[name], f"{row.prompts:,} prompts", row.note)


def count(claims: Iterable[Claim]) -> tuple[int, int]:
    """Return how many claims say better, and how many worse."""
    words = [claim.state for claim in claims]
    return words.count("good"), words.count("bad")


def learnt(figures: Learnt) -> Claim:
    """Return the claim of the held-out pairs: is the share that the policy favours above chance?"""
    share = figures.ratio["policy"]
    figure = f"{share.mean:.0%} of {figures.of} ({share.low:.0%} to {share.high:.0%})"
    return Claim(word_of(share, HALF), figure, figures.of, figures.note)


def learnt_over_control(figures: Learnt) -> Claim:
    """Return the claim of the policy's share of held-out pairs over that of plain SFT on the chosen answers."""
    shares = figures.ratio
    figure = f"{shares['policy'].mean:.0%} of pairs for {shares['control'].mean:.0%}"
    return Claim(word_of(shares["policy-control"]), figure, figures.of, figures.note)


def over_seeds(gain: Interval, seeds: int, note: str = "") -> Claim:
    """Return the claim of a difference of pass rates over seeds."""
    figure = f"{points(gain.mean)} points, {gain.bounds()} by seed"
    return Claim(word_of(gain), figure, f"{seeds} seeds", note)


def learnt_over_seeds(share: Interval, seeds: int, note: str = "") -> Claim:
    """Return the claim of the share of held-out pairs that the policy favours, over seeds."""
    figure = f"{share.mean:.0%} of held-out pairs, {share.low:.0%} to {share.high:.0%} by seed"
    return Claim(word_of(share, HALF), figure, f"{seeds} seeds", note)


def judged(figures: Judged) -> Claim:
    """Return the claim of a labeler's judgements of the policy's answers against another model's."""
    figure = f"wins {figures.rates.win_rate.share()}"
    return Claim(Word(figures.rates.effect), figure, f"{figures.judged:,} comparisons")


def judged_word(judged: int, rate: Interval, matched: MatchedRate | str) -> Word:
    """Return the word of a win rate. Length is ruled out if both intervals exclude one half on the same side.
    `matched`: the length-controlled rate, or why there is none."""
    word = word_of(rate, HALF)
    if judged < ENOUGH_JUDGED:
        return Word.too_few
    if word is Word.same:
        return word
    if isinstance(matched, MatchedRate) and word_of(matched.win_rate, HALF) is word:
        return word
    return Word.preferred if word is Word.better else Word.rejected


def note_of_run(evaluation: Manifest) -> str:
    """Return the note on all claims of a run whose base has random weights, else ''."""
    return REHEARSAL if evaluation["metrics"].get("rehearsal") else ""


def gate(code: GateCode, figure: str = "", scope: str = "", note: str = "") -> Claim:
    """Return the claim of a measure of two models, or of all measures of them, by the outcome of their tests."""
    return Claim(GATE_WORDS[code], figure, scope, note)


def verdict(results: Results) -> str:
    """Return the verdict of an evaluation with its figures: a sentence for each part. Only the first of several judged
    opponents is included."""
    sentences = list[str]()
    for part in results.gives_verdict:
        if part == "checks" and results.primary:
            sentences.append(checks_sentence(results, results.primary))
        elif part == "learnt" and results.learnt:
            sentences.append(learnt_sentence(results, results.learnt))
        elif part == "judged":
            first_opponent = next(iter(results.judged.values()))
            sentences.append(judged_sentence(first_opponent, results.policy))
    return " ".join(sentences)


def checks_sentence(results: Results, primary: Row) -> str:
    """Return the verdict by checks, with the clause on endings."""
    claim = change(primary, results.main_difference)
    is_other = results.before == "other"
    lead = f"{results.policy} {claim.says('passing' if is_other else 'effect')}"
    if claim.note:
        does = "passes more" if is_other else "helped"
        lead = f"{claim.note.capitalize()} whether {results.policy} {does}"
    of = primary.set or f"{primary.tasks} tasks"
    delta = primary[results.main_difference].points()
    prompts = f"{primary.prompts} held-out prompts of {of}"
    sentence = f"{lead}: {delta} over {results.title_before}, on {prompts}{results.endings}."
    if primary.prompts < ENOUGH_PROMPTS:
        sentence += f" Fewer than {ENOUGH_PROMPTS} prompts: a small effect would stay undetected."
    return sentence


def learnt_sentence(results: Results, figures: Learnt) -> str:
    """Return in one sentence whether the policy learnt its preferences, with what became worse."""
    claim = learnt(figures)
    lead = claim.says("learnt", model=results.policy)
    if claim.note:
        lead = f"{claim.note.capitalize()} whether {results.policy} learnt the preferences"
    share = f"{figures.ratio['policy'].share()} of {figures.of} (chance 50%)"
    return f"{lead}: it favours the better answer in {share}{results.cautions}."


def judged_sentence(row: Judged | Waiting, policy: str) -> str:
    """Return in one sentence whose answers are better, who judged them, and the win rate. `policy`: its title."""
    answers = f"{policy}'s answers"
    title = row.opposed.title
    opponent = title if title == REFERENCES else f"{title}'s answers"
    if isinstance(row, Waiting):
        return f"People have not said yet whether {answers} are better than {opponent}. Run stage=versus to ask them."
    labeler = row.opposed.labeler
    who = LABELERS.get(labeler, f"The labeler {labeler}")
    by_people = labeler == "human"
    share = row.rates.win_rate.share()
    comparisons = f"{row.judged} comparisons"
    people = row.rates.people
    if people and people.decides:
        who = people.by.capitalize()
        by_people = True
        share = people.win_rate.share()
        comparisons += f", {people.known} of them judged by people"
    says = judged(row).says(
        "judged",
        who=who,
        finds="find" if by_people else "finds",
        prefers="prefer" if by_people else "prefers",
        answers=answers,
        others=opponent,
    )
    return f"{says}: {answers} win {share} of {comparisons} (a tie counts half)."


def endings_clause(ended: Intervals, titles: Mapping[str, str], first: str) -> str:
    """Return the verdict's clause if the policy ends measurably fewer answers than the model before it, or only few,
    else ''. `ended`: the shares of answers that end by themselves; `first`: the role of the model before."""
    before, policy = ended[first].mean, ended["policy"].mean
    if difference(ended[f"policy-{first}"]).is_worse:
        return f", and ends fewer of its answers by itself: {before:.1%} → {policy:.1%}"
    if policy <= MOST:
        return (
            f", and ends only {policy:.1%} of its answers by itself ({titles[first]} {before:.1%})"
        )
    return ""


def retention_sentence(tests: list[Retained], titles: Mapping[str, str]) -> str:
    """Say in one or two sentences which tests of retention hold."""
    policy = titles["policy"]
    not_shown = [
        f"{test.what} (against {titles[test.against]})" for test in tests if not test.holds
    ]
    if not not_shown:
        return f"{policy} keeps what it could do before: all {len(tests)} claims of retention hold."
    count = f"{len(tests) - len(not_shown)} of {len(tests)} claims of retention hold."
    return f"{count} {policy} is not shown to keep: {'; '.join(not_shown)}."
