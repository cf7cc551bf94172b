"""Claims: what the interval of an effect says, in words. No other module turns an interval into a word.

A claim has a word, a figure, a scope and a note. Pages, cards, commands and messages print claims: they ask one for its
answer to a question, and claims.yaml has the answers. The note wins: a claim with a note says the note and nothing
else, wherever it is printed. A new arm or measure makes claims here, and every page can print them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from stages.config.blocks.evaluation import REFERENCES
from stages.config.exit_codes import GateCode
from stages.config.installation import read_beside
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import ENOUGH_PROMPTS, FEWEST_PAIRS
from stages.evaluation.results import (
    BlindRule,
    Divergence,
    Intervals,
    Judged,
    Learnt,
    MatchedRate,
    Results,
    Retained,
    Retention,
    Row,
    Waiting,
)
from stages.store.numbers import points
from stages.store.truncation import MOST

ANSWERS: dict[str, dict[str, str]] = read_beside(__file__)
HALF = 0.5  # the share right by chance
ENOUGH_JUDGED = 20  # fewest judged prompts for a verdict
LABELERS = {
    "human": "People",
    "judge": "The judge",
    "reward_model": "The reward model",
    "own": "Your labeler",
}
SURE = 0.999  # the confidence of a measured figure that is called certain
LEAST_MOVED = 1e-4  # nats per token; below it the sign of a change is no change
REHEARSAL = "a rehearsal cannot say"
REHEARSED = "Rehearsal on random weights: your file passes all stages"
NO_NUMBER = "a figure that is not a number cannot say"
ONLY_REPEATS = "only repeats of training pairs are held out: too few to say"
# For each blind rule, what it goes by, and the clause for pairs on which it is wrong or silent.
BLIND_RULES = {
    "longer": ("length", "whose better answer is not the longer"),
    "shorter": ("length", "whose better answer is not the shorter"),
    "first": ("order", "whose better answer is not the first"),
    "more of the prompt's words": (
        "the prompt's words",
        "whose better answer has not more of the prompt's words",
    ),
}
OVER_CONTROL = "policy-control"


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
    unmoved = "moved nothing"
    perhaps = "perhaps learnt"
    shortcut = "learnt a shortcut"
    certain_fault = "a fault, certain"
    fault = "a fault"
    differs = "a difference"
    sound = "no fault found"


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
        answer = ANSWERS[question][self.word.name]
        return answer.format_map({"figure": self.figure, "scope": self.scope, **names})

    def with_figure(self, question: str, **names: str) -> str:
        """Return the answer with the figure behind it: `better (+8.6 points, +2.6 to +15.8; 800 prompts)`."""
        if self.note:
            return self.note
        behind = "; ".join(filter(None, (self.figure, self.scope)))
        return f"{self.says(question, **names)} ({behind})"

    @property
    def answer(self) -> str:
        """The claim without a question: its note, else its word."""
        return self.note or self.word

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
    """Return what an interval says of an effect; too few where a bound is not a number. `neutral`: the value without any
    effect."""
    if note_of(interval):
        return Word.too_few
    if interval.low > neutral:
        return Word.better
    return Word.worse if interval.high < neutral else Word.same


def note_of(*intervals: Interval) -> str:
    """Return the note of a claim on these intervals: '' if all their bounds are numbers."""
    for interval in intervals:
        if math.isnan(interval.low) or math.isnan(interval.high):
            return NO_NUMBER
    return ""


def is_above(interval: Interval, value: float) -> bool:
    return word_of(interval, value) is Word.better


def is_below(interval: Interval, value: float) -> bool:
    return word_of(interval, value) is Word.worse


def difference(delta: Interval, scope: str = "", note: str = "") -> Claim:
    """Return the claim of a difference of shares, of which more is better."""
    figure = f"{points(delta.mean)} points, {delta.bounds()}"
    return Claim(word_of(delta), figure, scope, note or note_of(delta))


def change(row: Row, name: str) -> Claim:
    """Return the claim of a difference of pass rates, by its name."""
    return difference(row[name], f"{row.prompts:,} prompts", row.note)


def highest(rate: float, is_above_all: bool, is_setting: bool, scope: str) -> Claim:
    """Return the claim of the highest of many pass rates. `is_above_all`: every other model is worse by an interval that
    is corrected for their number; `is_setting`: it is the rate of a setting, not of SFT."""
    word = Word.same
    if is_above_all:
        word = Word.better if is_setting else Word.worse
    return Claim(word, f"{rate:.1%}", scope)


def count(claims: Iterable[Claim]) -> tuple[int, int]:
    """Return how many claims say better, and how many worse."""
    words = [claim.state for claim in claims]
    return words.count("good"), words.count("bad")


def learnt(figures: Learnt) -> Claim:
    """Return the claim of the held-out pairs: on how many did the policy gain more on the better answer? Pairs that
    repeat a training pair do not count."""
    claimed = figures.claimed
    share = claimed.ratio["policy"]
    note = note_on_pairs(figures) or note_of(share)
    return Claim(learnt_word(claimed), share.share(), claimed.of, note)


def learnt_word(figures: Learnt) -> Word:
    """Return the word for what was learnt. A share that the best blind rule explains shows no more than this rule."""
    if figures.moved["policy"] < LEAST_MOVED:
        return Word.unmoved
    word = word_of(figures.ratio["policy"], HALF)
    if word is not Word.better or not figures.blind:
        return word
    unexplained = beyond_rule(figures.blind)
    if unexplained.is_better:
        return Word.better
    return Word.shortcut if unexplained.is_worse else Word.perhaps


def note_on_pairs(figures: Learnt) -> str:
    """Return why held-out pairs can say nothing, or ''."""
    if figures.repeats and not figures.others:
        return figures.note or ONLY_REPEATS
    return figures.claimed.note


def beyond_rule(blind: BlindRule) -> Claim:
    """Return the claim of the pairs on which the best blind rule is wrong or silent: did the policy gain there?"""
    _, clause = BLIND_RULES[blind.rule]
    pairs = "pair" if blind.unexplained == 1 else "pairs"
    word = Word.too_few
    if blind.unexplained >= FEWEST_PAIRS:
        word = word_of(blind.shares["policy"], HALF)
    scope = f"the {blind.unexplained:,} {pairs} {clause}"
    return Claim(word, f"{blind.gained['policy']:,}", scope)


def size(figures: Learnt, kl: Mapping[str, Divergence]) -> str:
    """Return how far the policy moved: `moved 0.37 nats a token, KL 0.052`. A share alone has no size. `kl`: by role."""
    moved = f"moved {figures.claimed.moved['policy']:.2g} nats a token"
    return f"{moved}, KL {kl['policy'].per_token:.2g}" if "policy" in kl else moved


def has_control(figures: Learnt) -> bool:
    return OVER_CONTROL in figures.sum


def learnt_over_control(figures: Learnt) -> Claim:
    """Return the claim of the policy over plain SFT on the chosen answers, by the likelihood of the better answer.
    SFT gains on chosen answers by construction, so the gain says nothing. Log-prob and log-prob per token do, each
    with a bias by length: where one alone shows a difference, this may be its bias."""
    claimed = figures.claimed
    by_sum, by_token = claimed.sum[OVER_CONTROL], claimed.per_token[OVER_CONTROL]
    figure = (
        f"{points(by_sum.mean)} by log-prob ({by_sum.bounds()}; short answers gain), "
        f"{points(by_token.mean)} per token ({by_token.bounds()}; long gain)"
    )
    words = {word_of(by_sum), word_of(by_token)}
    note = note_on_pairs(figures) or note_of(by_sum, by_token)
    return Claim(word_of_measures(words), figure, claimed.of, note)


def word_of_measures(words: set[Word]) -> Word:
    """Return the word of two measures of one effect whose biases are opposite."""
    if Word.too_few in words:
        return Word.too_few
    if {Word.better, Word.worse} <= words or words == {Word.same}:
        return Word.unknown
    if Word.better in words:
        return Word.preferred if Word.same in words else Word.better
    return Word.rejected if Word.same in words else Word.worse


def over_control(results: Results) -> Claim | None:
    """Return the claim of the policy over its control: by checks, else by preferences. None if the
    control was not evaluated."""
    if "control" not in results.models:
        return None
    if results.primary and "checks" in results.gives_verdict:
        return change(results.primary, OVER_CONTROL)
    return preferred_over_control(results)


def preferred_over_control(results: Results) -> Claim | None:
    """Return the claim of the policy over its control by a judge if it can tell, else by held-out pairs."""
    opposed = results.judged.get("control")
    if isinstance(opposed, Judged):
        by_judge = judged(opposed)
        if by_judge.is_better or by_judge.is_worse:
            return by_judge
    if results.learnt and has_control(results.learnt):
        return learnt_over_control(results.learnt)
    return None


def over_seeds(gain: Interval, seeds: int, note: str = "") -> Claim:
    """Return the claim of a difference of pass rates over seeds."""
    figure = f"{points(gain.mean)} points, {gain.bounds()} by seed"
    return Claim(word_of(gain), figure, f"{seeds} seeds", note or note_of(gain))


def learnt_over_seeds(share: Interval, seeds: int, note: str = "") -> Claim:
    """Return the claim of the share of held-out pairs that the policy favours, over seeds."""
    figure = f"{share.mean:.0%} of held-out pairs, {share.low:.0%} to {share.high:.0%} by seed"
    return Claim(word_of(share, HALF), figure, f"{seeds} seeds", note or note_of(share))


def learnt_control_over_seeds(by_sum: Interval, by_token: Interval, seeds: int) -> Claim:
    """Return the claim of the policy over plain SFT on the chosen answers over seeds, as `learnt_over_control` does."""
    figure = (
        f"{points(by_sum.mean)} points by log-prob, {by_sum.bounds()}; "
        f"{points(by_token.mean)} per token, {by_token.bounds()} by seed"
    )
    word = word_of_measures({word_of(by_sum), word_of(by_token)})
    return Claim(word, figure, f"{seeds} seeds", note_of(by_sum, by_token))


def judged(figures: Judged) -> Claim:
    """Return the claim of a labeler's judgements of the policy's answers against another model's."""
    figure = f"wins {figures.rates.win_rate.share()}"
    scope = f"{figures.judged:,} comparisons"
    return Claim(Word(figures.rates.effect), figure, scope, figures.note or "")


def judged_word(judged: int, rate: Interval, matched: MatchedRate | str) -> Word:
    """Return the word of a win rate. Length is ruled out if both intervals exclude one half on the same side.
    `matched`: the length-controlled rate, or why there is none."""
    word = word_of(rate, HALF)
    if judged < ENOUGH_JUDGED:
        return Word.too_few
    if word in (Word.same, Word.too_few):
        return word
    if isinstance(matched, MatchedRate) and word_of(matched.win_rate, HALF) is word:
        return word
    return Word.preferred if word is Word.better else Word.rejected


def finding(seen: str, scope: str, *, is_fault: bool, is_certain: bool) -> Claim:
    """Return the claim of what was seen in a model. `is_certain`: the files say it, or the figure is beyond
    chance at SURE. A difference that is no fault needs no certainty."""
    word = Word.differs
    if is_fault:
        word = Word.certain_fault if is_certain else Word.fault
    return Claim(word, seen, scope)


def examination(faults: int, checks: int, unanswered: str) -> Claim:
    """Return the claim of an examination by all its checks. `unanswered`: why some of them cannot say anything, or ''."""
    scope = f"{checks} checks"
    if faults:
        return Claim(Word.fault, "1 fault was" if faults == 1 else f"{faults} faults were", scope)
    if unanswered:
        return Claim(Word.too_few, unanswered, scope)
    return Claim(Word.sound, scope, scope)


def note_of_run(results: Results) -> str:
    """Return the note on all claims of a rehearsal, else ''."""
    return REHEARSAL if results.rehearsal else ""


def gate(code: GateCode, figure: str = "", scope: str = "", note: str = "") -> Claim:
    """Return the claim of a measure of two models, or of all measures of them, by the outcome of their tests."""
    return Claim(GATE_WORDS[code], figure, scope, note)


def rehearsed(results: Results) -> Results:
    """Return the results of a base with random weights on the user's data: no claim of them says anything."""
    groups = {name: replace(row, note=REHEARSAL) for name, row in results.groups.items()}
    judged_parts = {
        name: without_word(each) if isinstance(each, Judged) else each
        for name, each in results.judged.items()
    }
    return replace(
        results,
        learnt=rehearsed_pairs(results.learnt) if results.learnt else None,
        judged=judged_parts,
        groups=groups,
        primary=replace(results.primary, note=REHEARSAL) if results.primary else None,
        kinds=noted_rows(results.kinds),
        tasks=noted_rows(results.tasks),
        retention=rehearsed_retention(results.retention) if results.retention else None,
        endings="",
        cautions="",
        rehearsal=REHEARSED,
    )


def rehearsed_pairs(figures: Learnt) -> Learnt:
    """Return the figures of held-out pairs of which a rehearsal says nothing."""
    others = replace(figures.others, note=REHEARSAL) if figures.others else None
    groups = figures.by
    if groups:
        unmarked = [replace(group, is_reversed=False, is_certain=False) for group in groups.groups]
        groups = replace(groups, groups=unmarked)
    return replace(figures, note=REHEARSAL, others=others, by=groups)


def without_word(figures: Judged) -> Judged:
    """Return a judged comparison of which a rehearsal says nothing."""
    return replace(figures, note=REHEARSAL, rates=replace(figures.rates, effect=Word.unknown))


def rehearsed_retention(retention: Retention) -> Retention:
    """Return tests of retention, none of which holds in a rehearsal."""
    tests = [replace(test, holds=False) for test in retention.claims]
    return Retention(tests, f"{REHEARSAL.capitalize()} what was kept.")


def noted_rows(rows_by_side: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Return rates of which a rehearsal says nothing."""
    return {
        side: {name: replace(row, note=REHEARSAL) for name, row in rows.items()}
        for side, rows in rows_by_side.items()
    }


def verdict(results: Results) -> str:
    """Return the verdict of an evaluation with its figures: a sentence for each part. Only the first of several judged
    opponents is included."""
    if results.rehearsal:
        return f"{results.rehearsal}."
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
    """Return whether the policy learnt its preferences, with what became worse, and how it differs from plain SFT."""
    sentence = f"{learnt_clause(results, figures)}{results.cautions}."
    over = preferred_over_control(results)
    if over and not over.note:
        says = over.says("over_plain", model=results.policy, control=results.control_in_words)
        sentence += f" {says[:1].upper()}{says[1:]}: {over.figure}."
    return sentence


def learnt_clause(results: Results, figures: Learnt, but: str = "") -> str:
    """Return whether the policy learnt its preferences, on which pairs, how far it moved, and what no blind rule
    explains. `but`: a clause on what else became of it, or ''."""
    claim = learnt(figures)
    gained = f"it gained more on the better answer in {claim.figure} of {claim.scope}, {size(figures, results.kl)}"
    if claim.note:
        whether = f"{claim.note.capitalize()} whether {results.policy} learnt the preferences"
        return f"{whether}: {gained}"
    says = claim.says("learnt", model=results.policy)
    blind = figures.claimed.blind
    beyond = beyond_clause(claim, blind) if blind else ""
    return f"{repeats_clause(figures)}{says}{but}: {gained}{beyond}"


def repeats_clause(figures: Learnt) -> str:
    """Return the clause on pairs that repeat a training pair, before what is said of the others; '' without any."""
    if not figures.others:
        return ""
    return f"{figures.repeats:,} of {figures.of} repeat a training pair; on the others "


def beyond_clause(claim: Claim, blind: BlindRule) -> str:
    """Return the clause on the pairs that the best blind rule leaves unexplained, with a word if there is a gain to
    explain. `claim`: of all pairs."""
    unexplained = beyond_rule(blind)
    clause = f"; on {unexplained.scope}: {unexplained.figure}"
    if claim.word not in (Word.better, Word.perhaps, Word.shortcut):
        return clause
    goes_by, _ = BLIND_RULES[blind.rule]
    return f"{clause}, {unexplained.says('beyond', rule=goes_by)}"


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
