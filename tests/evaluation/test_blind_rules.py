"""Blind rules on planted pairs: the best one by training pairs, and what it leaves unexplained on held-out pairs."""

import random

import numpy as np
import pytest

from stages.evaluation.blind_rules import BlindPair, best_rule, blind_figures
from stages.store.records import Pair

REQUEST = "Which colour has the old harbour bridge at night?"


def pair(
    chosen: str, rejected: str, request: str = REQUEST, first: bool | None = None
) -> BlindPair:
    """Return what rules know of a pair, with a token for each word."""
    turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    messages = [{"role": "system", "content": "bridge"}, {"role": "user", "content": request}]
    row = Pair("id", "prompt", messages, *turns, None, "l", "all", "a", "b", "train")
    row.chosen_first = first
    return BlindPair.of(row, [len(chosen.split()), len(rejected.split())])


def test_the_best_rule_is_the_one_by_which_the_pairs_were_made() -> None:
    longer = [pair("it is green", "no", first=bool(i % 2)) for i in range(20)]
    shorter = [pair("no", "it is green", first=bool(i % 2)) for i in range(20)]
    # of equal length, with more of the request's words, or fewer
    words = [pair("the harbour bridge", "a small boat", first=bool(i % 2)) for i in range(20)]
    first = [pair("no it is", "so it was", first=i % 5 != 0) for i in range(20)]
    assert best_rule(longer) == "longer"
    assert best_rule(shorter) == "shorter"
    assert best_rule(words) == "more of the prompt's words"
    assert best_rule(first) == "first"
    assert best_rule([]) is None


@pytest.mark.parametrize("order", [True, False, None])
def test_the_order_of_columns_of_chosen_and_rejected_is_no_rule(order: bool | None) -> None:
    rows = [pair("it is green", "no", first=order)] * 11 + [pair("no", "it is", first=order)] * 9
    assert best_rule(rows) == "longer"


def test_the_rule_is_chosen_on_training_pairs_and_counted_on_held_out_pairs() -> None:
    training = [pair("it is quite green", "no")] * 30 + [pair("no", "it is green")] * 3
    held_out = [pair("it is green", "no")] * 60
    held_out += [pair("no", "it is green")] * 12  # the rule is wrong
    held_out += [pair("a b", "c d")] * 8  # the rule is silent
    policy = np.array([1.0] * 50 + [0.0] * 10 + [1.0] * 5 + [0.0] * 7 + [0.5] * 2 + [1.0] * 6)
    prompts = [str(i) for i in range(80)]
    figures = blind_figures(training, held_out, prompts, {"policy": policy}, 0.95)
    assert figures.rule == "longer"
    assert (figures.training_pairs, figures.training_share) == (33, pytest.approx(30 / 33))
    assert figures.share.mean == pytest.approx((60 + 8 / 2) / 80)
    assert figures.share.low < 0.8 < figures.share.high
    assert (figures.wrong, figures.silent, figures.unexplained) == (12, 8, 20)
    assert figures.gained == {"policy": 5 + 6}


def test_a_policy_that_learnt_length_alone_gained_nothing_where_length_is_wrong() -> None:
    drawn = random.Random(0)
    texts = [("one two three", "one"), ("one", "one two three")]
    held_out = [pair(*texts[drawn.random() < 0.2]) for _ in range(50)]
    by_length = np.array([float(each.tokens[0] > each.tokens[1]) for each in held_out])
    prompts = [str(i) for i in range(50)]
    figures = blind_figures([pair(*texts[0])] * 20, held_out, prompts, {"policy": by_length}, 0.95)
    assert figures.unexplained == 50 - by_length.sum() > 0
    assert figures.gained == {"policy": 0}
    assert blind_figures([], held_out, prompts, {"policy": by_length}, 0.95) is None


def test_a_thought_and_a_system_message_count_for_no_rule() -> None:
    thoughtful = pair("<think>\nthe harbour bridge\n</think>\n\nno", "the harbour")
    assert thoughtful.prompt_words == (0, 2)
    assert pair("bridge", "boat", request="Which boat?").prompt_words == (0, 1)
