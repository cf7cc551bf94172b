"""On planted log-probs and texts the sentence, the lamps, the verdict and the card say what is true and no more."""

import re
from dataclasses import replace
from typing import Any

import pytest

from stages.commands.documents import evaluation_section
from stages.evaluation import claims
from stages.evaluation.claims import Word
from stages.evaluation.results import Opposed
from stages.pages.first_screen import lamps, rates, sentence
from stages.pages.headline import Headline
from tests.evaluation.planted_preferences import SETS, Kind, Planted, Right
from tests.evaluation.test_claims import planted_comparison

NODES: dict[str, Any] = {"eval": {"stage": "eval", "inputs": {"policy": {"stage": "dpo"}}}}
RUN = "python run.py recipe=from_preferences data.path=FILE"
STATES = {Word.better: "good", Word.worse: "bad"}
BY_TITLE = {planted.title: planted for planted in SETS}


@pytest.mark.parametrize("planted", SETS, ids=[planted.title for planted in SETS])
def test_every_place_says_what_the_planted_pairs_show(planted: Planted) -> None:
    made = planted.results()
    assert made.learnt
    claim = claims.learnt(made.learnt)
    word = None if claim.note else claim.word
    assert word is planted.word
    first_line = sentence(made, NODES, "it")
    card = evaluation_section(made, 0.95)
    for fact in planted.facts:
        assert fact in first_line and fact in made.verdict and fact in card
    learnt_lamp, *_, control_lamp = lamps(made, NODES, "it", RUN)
    assert learnt_lamp.state == STATES.get(planted.word, "none")
    assert learnt_lamp.word == claim.says("learnt_lamp")
    assert "in order" not in first_line + made.verdict + Headline(made).learnt()
    if planted.word:
        for size in ("nats a token", "KL 0.052"):
            assert size in first_line and size in made.verdict
    if planted.control is None:
        assert control_lamp.state == "off"
    elif planted.over_control:
        over = claims.learnt_over_control(made.learnt)
        assert over.word is planted.over_control
        assert control_lamp.state == STATES.get(over.word, "none")
        assert control_lamp.figure.startswith(over.figure)
        assert over.figure in made.verdict
    else:
        assert (control_lamp.state, control_lamp.word) == ("none", claims.REHEARSAL)


def test_what_pairs_cannot_tell_of_plain_sft_comes_with_the_command_that_would() -> None:
    for title in ("control equal", "measures that contradict each other"):
        lamp = lamps(BY_TITLE[title].results(), NODES, "it", RUN)[-1]
        assert lamp.command.startswith(f"{RUN} eval/judged=judge ")
        assert "control" in lamp.command
    told = lamps(BY_TITLE["control lower by both measures"].results(), NODES, "it", RUN)[-1]
    assert told.command == ""


def test_a_judge_that_can_tell_decides_over_plain_sft_before_likelihoods_do() -> None:
    made = BY_TITLE["control lower by both measures"].results()
    for effect, state, words in (("worse", "bad", "less than"), ("same", "good", "more than")):
        comparison = planted_comparison(effect)
        opposed = replace(comparison, opposed=Opposed("Plain SFT", "judge", 90, 0))
        asked = replace(made, judged={"control": opposed})
        assert lamps(asked, NODES, "it", RUN)[-1].state == state
        for text in (sentence(asked, NODES, "it"), claims.verdict(asked)):
            assert f"{words} plain SFT" in text.replace("More", "more").replace("Less", "less")


def test_a_difference_of_both_measures_stands_on_the_first_screen_with_its_bias() -> None:
    made = BY_TITLE["control lower by both measures"].results()
    lamp = lamps(made, NODES, "it", RUN)[-1]
    assert made.learnt
    for measure in (made.learnt.sum, made.learnt.per_token):
        difference = measure["policy-control"]
        assert difference.low > 0
        assert f"{100 * difference.mean:+.1f}" in lamp.figure
        assert difference.bounds() in lamp.figure
    assert "short answers gain" in lamp.figure and "long gain" in lamp.figure


def test_claims_are_about_the_pairs_that_repeat_no_training_pair() -> None:
    made = BY_TITLE["repeats gained and the others did not"].results()
    assert made.learnt and made.learnt.others
    assert made.learnt.ratio["policy"].low > 0.5, "with the repeats it would be learnt"
    [chart] = rates(made, "it")
    assert "30 pairs" in chart.about
    assert chart.bars[-1].rate == made.learnt.others.ratio["policy"]


def test_one_seed_says_that_other_seeds_are_not_in_the_interval_and_three_give_theirs() -> None:
    made = BY_TITLE["length explains part"].results()
    one = Headline(made, 1, learnt=[made.learnt]).learnt()
    assert "One seed: other seeds are not in this interval" in one
    others = [BY_TITLE[title].learnt() for title in ("reversed", "chance")]
    three = Headline(made, 3, learnt=[made.learnt, *others]).learnt()
    assert "One seed" not in three
    assert "10.0%, 50.0%" in three


def test_a_rehearsal_gives_no_word_of_an_effect_anywhere() -> None:
    made = BY_TITLE["rehearsal"].results()
    judged = {"sft": planted_comparison("better")}
    judged_too = claims.rehearsed(replace(made, judged=judged))
    shown = lamps(judged_too, NODES, "it", RUN)
    assert {lamp.state for lamp in shown} <= {"none", "off"}
    texts = [sentence(judged_too, NODES, "it"), claims.verdict(judged_too)]
    texts += [lamp.word for lamp in shown]
    assert not [text for text in texts if re.search(r"learnt|helped|better", text)]
    assert Headline(judged_too).learnt().startswith(claims.REHEARSAL.capitalize())


def test_no_pair_that_a_rule_decides_makes_a_share_of_nothing() -> None:
    by_length = Planted("", [Kind(30, True, True)], Word.perhaps, [], policy=Right(0, 0))
    blind = by_length.learnt().blind
    assert blind and (blind.unexplained, blind.shares) == (0, {})
