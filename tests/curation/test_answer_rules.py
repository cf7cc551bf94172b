"""Answer rules, on answers as small models write them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.curation import languages
from stages.curation.answer_rules import find_broken_rule, is_within, logprob_limits
from stages.store.records import Candidate, Check, Example
from tests.rows import candidate, prompt

REQUEST = "Explain how tides work to somebody who has never seen the sea."
GOOD = (
    "The moon pulls on the water of the sea. Where the pull is strong, the water rises, and that is high tide. "
    "A few hours later it falls again."
)

GERMAN = "Der Mond zieht das Wasser zu sich hin, und so steigt das Meer, bis es Stunden danach wieder fällt."


def request(*checks: Check) -> Example:
    return prompt("p", REQUEST, checks=[*checks])


def answer(text: str, finish_reason: str = "stop", **fields: Any) -> Candidate:
    drawn = {"logprob": -30.0, "n_tokens": 30, "finish_reason": finish_reason}
    return candidate("p", text, **drawn | fields)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "- The moon pulls on the sea.\n- The sea rises.\n- Later it falls, and then the next one comes.",
        '{"title": "Tides", "summary": "The moon pulls on the water, which rises and falls twice a day."}',
        "Moon.",
        "THE MOON PULLS ON THE WATER OF THE SEA AND THE WATER RISES, WHICH IS CALLED HIGH TIDE.",
        "Dear Ann,\n\nthe moon pulls on the sea, and so the water rose when we were out. I am sorry for it.",
        "The moon pulls.\n***\nThe sea rises.\n***\nThe moon goes.\n***\nThe sea falls.",
        "# Tides\n\nThey rise when the moon is near, and fall when it is not.\n\nP.S. Bring boots.",
    ],
)
def test_a_plain_answer_breaks_no_rule(text: str) -> None:
    assert find_broken_rule(request(), answer(text)) is None


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("  \n ", "stop", "says nothing"),
        (GOOD, "length", "is not finished"),
        ("The moon pulls on the water of the sea,", "stop", "is not finished"),
        ("Tides have two causes:\n1. The moon\n2.", "stop", "is not finished"),
        ("The moon pulls on the water. " * 6, "stop", "says the same again and again"),
        (
            "The sea rises.\nThe sea rises.\nThe sea rises.\nThen it falls.",
            "stop",
            "says the same again and again",
        ),
        (REQUEST, "stop", "echoes the request"),
        ("Sure! " + REQUEST, "stop", "echoes the request"),
        ("I’m so sorry, but the tides are not what I am here for.", "stop", "refuses"),
        (
            "Tides? As a helpful AI assistant, I love the sea, which rises and falls.",
            "stop",
            "refuses",
        ),
        ("The moon is far away. I don't have the ability to see the sea.", "stop", "refuses"),
        (
            "La luna atrae el agua del mar hacia arriba, y cuando la fuerza cambia baja otra vez durante horas.",
            "stop",
            "is in another language",
        ),
        ("潮汐是由月球的引力引起的，海水每天涨落两次。", "stop", "is in another language"),
    ],
)
def test_a_rule_names_what_is_wrong(text: str, finish_reason: str, reason: str) -> None:
    assert find_broken_rule(request(), answer(text, finish_reason)) == reason


def test_a_requested_language_is_allowed() -> None:
    spanish = "La luna atrae el agua del mar hacia arriba, y cuando la fuerza cambia baja otra vez durante horas."
    assert (
        find_broken_rule(request(Check("in_language", {"language": "Spanish"})), answer(spanish))
        is None
    )


def test_the_limits_exclude_the_highest_and_lowest_log_probs() -> None:
    pool = [answer(GOOD, logprob=-30.0 * i / 100) for i in range(101)]
    limits = logprob_limits(pool)
    inside = [c for c in pool if is_within(c, limits)]
    assert inside == pool[2:99], "UNUSUAL leaves out fewer than a twentieth"
    few = pool[:20]
    assert all(is_within(c, logprob_limits(few)) for c in few)
    assert is_within(answer(GOOD, logprob=None), limits)


ANSWERS = yaml.safe_load(Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8"))
TIDES = {
    "German": "Warum gibt es Ebbe und Flut, und wie oft?",
    "French": "Pourquoi est-ce que la mer monte et descend ?",
    "Spanish": "¿Por qué hay mareas, y cuándo sube el mar?",
    "Portuguese": "Explique por que existem marés em uma praia.",
    "Italian": "Spiega perché esistono le maree, e quando il mare sale.",
    "Dutch": "Waarom is er eb en vloed, en hoe vaak?",
    "English": REQUEST,
}


def test_no_good_answer_is_in_another_language() -> None:
    pairs = [pair for pairs in ANSWERS.values() for pair in pairs]
    assert len(pairs) > 80
    assert not [pair for pair in pairs if languages.difference(*pair)]


@pytest.mark.parametrize("language", TIDES)
def test_another_language_is_named(language: str) -> None:
    others = {name: " ".join(answer for _, answer in ANSWERS[name][:5]) for name in TIDES}
    for other, answer in others.items():
        difference = languages.difference(TIDES[language], answer)
        assert difference == (None if other == language else f"in {other}, and not in {language}")


def test_a_request_that_names_a_language_may_be_answered_in_it() -> None:
    for request in (
        "Translate it into German.",
        "Schreibe das bitte auf Englisch.",
        "Dis-le en anglais.",
    ):
        assert languages.difference(request, GOOD) is None
        assert languages.difference(request, GERMAN) is None


def test_a_request_in_another_script_may_get_a_name_in_latin_letters_and_no_sentences() -> None:
    request = "Почему на море бывают приливы и отливы?"
    assert languages.difference(request, "Isaac Newton") is None
    assert languages.difference(request, "Луна притягивает воду (NASA).") is None
    english = "The moon pulls the water of the sea twice a day."
    assert languages.difference(request, english) == "in another script"
    assert languages.difference("Why are there tides?", "Луна притягивает воду.")
