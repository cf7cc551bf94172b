"""Rules that choose the better of two answers without reading them: by length, order, or words of the prompt.

The rule that is best on training pairs is a yardstick for held-out pairs. What a policy gained on pairs on which this
rule is wrong or silent, the rule does not explain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from stages.evaluation.estimate import Means
from stages.evaluation.intervals import Interval
from stages.evaluation.results import BlindRule
from stages.store.records import Message, Pair
from stages.store.text_units import plain_words, transcript
from stages.store.thoughts import answer_behind

ORDER_IS_THE_LABEL = (
    0.9  # of pairs with the better answer first: the columns are those of chosen and rejected
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlindPair:
    """What rules know of a pair: by chosen and rejected the tokens, and how many of the prompt's words they use;
    and if chosen was the first of the two, or None if they have no order."""

    tokens: tuple[float, float]
    prompt_words: tuple[int, int]
    chosen_first: bool | None

    @classmethod
    def of(cls, pair: Pair, tokens: Sequence[float]) -> "BlindPair":
        """Return what rules know of a pair. `tokens`: of its chosen and its rejected answer."""
        request = {*plain_words(last_request(pair.prompt))}
        chosen, rejected = (
            len(request.intersection(plain_words(answer_of(turns)))) for turns in pair.completions
        )
        return cls((tokens[0], tokens[1]), (chosen, rejected), pair.chosen_first)


def last_request(prompt: Sequence[Message]) -> str:
    """Return the last turn of the user, or '' if there is none."""
    requests = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return requests[-1] if requests else ""


def answer_of(turns: Sequence[Message]) -> str:
    """Return the text of a completion, without the thought of a single turn."""
    return answer_behind(turns[0]["content"]) if len(turns) == 1 else transcript(turns)


def more_tokens(pair: BlindPair) -> float:
    """Return by how many tokens chosen is longer."""
    return pair.tokens[0] - pair.tokens[1]


def fewer_tokens(pair: BlindPair) -> float:
    """Return by how many tokens chosen is shorter."""
    return -more_tokens(pair)


def is_first(pair: BlindPair) -> float:
    """Return 1 if chosen was the first of the two, and -1 if rejected was."""
    if pair.chosen_first is None:
        return 0
    return 1 if pair.chosen_first else -1


def more_prompt_words(pair: BlindPair) -> float:
    """Return how many more of the prompt's words chosen uses."""
    return pair.prompt_words[0] - pair.prompt_words[1]


# Each is above 0 if the rule chooses the better answer, below 0 if it chooses the other one, and 0 if it is silent.
RULES: Mapping[str, Callable[[BlindPair], float]] = {
    "longer": more_tokens,
    "shorter": fewer_tokens,
    "first": is_first,
    "more of the prompt's words": more_prompt_words,
}


def hits(rule: str, pairs: Sequence[BlindPair]) -> Array:
    """Return for each pair 1 if the rule chooses the better answer, 0 if it chooses the other one, and one half if it
    is silent."""
    leads = [RULES[rule](pair) for pair in pairs]
    return (1 + np.sign(leads)) / 2


def best_rule(training: Sequence[BlindPair]) -> str | None:
    """Return the rule that is right on most training pairs; None without pairs. The order of two answers is no rule if
    it is the label itself."""
    if not training:
        return None
    share_by_rule = dict[str, float]()
    for rule in RULES:
        share = float(hits(rule, training).mean())
        order_is_the_label = not 1 - ORDER_IS_THE_LABEL < share < ORDER_IS_THE_LABEL
        if rule == "first" and order_is_the_label:
            continue
        share_by_rule[rule] = share
    return max(share_by_rule, key=share_by_rule.__getitem__)


def blind_figures(
    training: Sequence[BlindPair],
    held_out: Sequence[BlindPair],
    prompts: Sequence[str],
    gained: Mapping[str, Array],
    confidence: float,
) -> BlindRule | None:
    """Return the best blind rule of the training pairs, its share of right held-out pairs, and on how many of them it is
    wrong or silent. `gained`: by model, 1 for each held-out pair whose better answer gained more; its counts are those
    on these pairs. Return None without training pairs."""
    rule = best_rule(training)
    if rule is None:
        return None
    right = hits(rule, held_out)
    unexplained = right < 1
    share = Means(right[:, None], [*prompts], drawn=True).share(0, confidence)
    gained_there = {role: values[unexplained] for role, values in gained.items()}
    prompts_there = [*compress(prompts, unexplained)]
    shares = dict[str, Interval]()
    if prompts_there:
        means = Means(np.stack([*gained_there.values()], 1), prompts_there, drawn=True)
        shares = {role: means.share(i, confidence) for i, role in enumerate(gained_there)}
    return BlindRule(
        rule=rule,
        training_pairs=len(training),
        training_share=float(hits(rule, training).mean()),
        share=share,
        wrong=int((right == 0).sum()),
        silent=int((right == 0.5).sum()),
        unexplained=int(unexplained.sum()),
        gained={role: int((values == 1).sum()) for role, values in gained_there.items()},
        shares=shares,
    )
