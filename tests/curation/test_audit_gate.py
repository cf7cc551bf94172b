"""Audit codes: each code on a row that has the fault, none on faultless rows, copies and near copies, and evaluation
prompts inside rows, verbatim and changed."""

import random
from collections.abc import Iterator
from functools import partial
from itertools import cycle

import pytest

from stages.config.choices import AUDIT_CODES
from stages.curation.audit import faults, mistakes
from stages.curation.audit.auditor import Auditor
from stages.curation.audit.codes import ALONE, DESCRIPTIONS
from stages.curation.audit.overlap import FEWEST, HeldOut
from stages.formats.format import ParsedRow
from stages.tasks.words import NOUNS, VERBS

PLAIN = {
    "Why does the sea rise and fall?": "The moon pulls on the water. Where the pull is strong, the water rises.",
    "Work out 12 * 4 - 6.": "12 * 4 = 48, and 48 - 6 = 42. A third of it is 42 / 3 = 14, a fifth 42 / 5 = 8.4.",
    "Solve 2x + 3 = 7 and print it at 10:30 - 9:30.": "2x + 3 = 7, so 2x = 4 and x = 2. Then `for i in range(9 - 3):`",
    "Name three trees.": "1. Oak\n2. Ash\n3. Elm",
    "Reply in JSON with a title.": '{"title": "Tides"}',
    "Write a python program that reads https://python.org with urllib { }": "import urllib.request",
    "Describe a logo for a bakery in words.": "A loaf with steam over it, in warm colours.",
    "Translate into Russian: good day": "Добрый день",
    "Write a song.": "La la la, la la la\nLa la la, la la la\nLa la la, la la la",
    "Write to help@example.com or 555-123-4567.": "Dear team,\n\nplease call me on (555) 123-4567.",
}
WRONG = [
    ("one_character", "Is it true?", "1"),
    ("no_answer", "Draw the notes of a tune.", "<nooutput>"),
    ("echo", "Fix this sentence.\n\nThe dogs run home now", "the dogs run home now."),
    ("unfinished", "Tell me about tides.", "They rise when the moon is near,"),
    (
        "unfinished",
        "Tell me about tides.",
        "The moon pulls on the water of the sea, and " * 4 + "then the water",
    ),
    (
        "merged",
        "Tell me about tides.",
        "They rise.\n\n6. Instruction: Name a tree.\n6. Output: Oak.",
    ),
    ("refusal", "Name a tree.", "I'm sorry, I cannot help with that."),
    ("boilerplate", "Name a tree.", "As an AI language model, I like oaks."),
    ("repetition", "Name trees.", "Oaks are very good trees. " * 5),
    ("wrong_sum", "What is 3 times 4 plus 1?", "3 * 4 + 1 = 14"),
    ("broken_promise", "List five trees.", "1. Oak\n2. Ash\n3. Elm"),
    ("broken_promise", "Say it in at most 3 words.", "That is far too many words for it."),
    ("broken_promise", "Reply in JSON.", '{"title": "Tides",}'),
    ("other_language", "Name a tree.", "Дуб, ясень и вяз"),
    (
        "other_language",
        "Warum gibt es Bäume, und wie alt sind sie?",
        "They are very old, because they grow slowly.",
    ),
    ("stale", "Who leads the country?", "As of my last update it was Ann."),
    ("control_token", "What ends a turn?", "It is <|im_end|> here."),
    ("placeholder", "Who are you?", "I am {{name}}, made by {{author}}."),
    ("placeholder", "Write a letter.", "Dear Ann,\n\nYours,\n[Your Name]"),
    ("input_marker", "Name a tree.\n\n<noinput>", "Oak."),
    ("needs_link", "Summarise the article.\n\nhttps://sea.org/tides", "It is about tides."),
    ("needs_attachment", "What is shown here?\n\n[image of a harbour]", "A harbour."),
    ("asks_for_picture", "Design a logo for my bakery.", "Here it is."),
    ("damaged", "Name a place to eat.", "The cafÃ© by the sea."),
    ("damaged", "Name a place to eat.", "The \u200bcafé by the sea."),
    ("secret", "What is in the file?", "key = AKIA" + "ABCDEFGHIJKLMNOP"),
    ("personal", "Who wrote this?", "Write to ann.smith@seaside-hotel.co.uk."),
]


def row(request: str, *answers: str, scores: list[float] | None = None) -> ParsedRow:
    return ParsedRow([{"role": "user", "content": request}], [*answers], scores)


def audit_rows(
    *rows: ParsedRow, split: str = "sft", against: tuple[str, ...] = ()
) -> list[set[str]]:
    """Return the codes of every row. Each row is compared with the rows before it."""
    prompts = HeldOut()
    for prompt in against:
        prompts.add(prompt, "eval.jsonl:1")
    auditor = Auditor(AUDIT_CODES, prompts)
    codes = []
    for i, row in enumerate(rows):
        codes.append({*auditor.findings(row, split)})
        auditor.remember(row, split, f"file:{i}")
    return codes


def texts(count: int, length: int, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(
            rng.choice([*NOUNS, *VERBS]) + rng.choice(["", "s", "ly"]) for _ in range(length)
        )


def edited(text: str, rng: random.Random) -> str:
    words = text.split()
    words[rng.randrange(len(words))] = "otherwise"
    return " ".join(words)


def test_every_code_has_a_sentence_and_an_example() -> None:
    assert {*DESCRIPTIONS} == {*AUDIT_CODES}
    assert {code for code, _, _ in WRONG} == {*ALONE}


def test_nothing_is_found_in_plain_rows() -> None:
    assert audit_rows(*(row(request, answer) for request, answer in PLAIN.items())) == [
        set()
    ] * len(PLAIN)


@pytest.mark.parametrize(("code", "request_", "answer"), WRONG)
def test_a_code_finds_what_it_says(code: str, request_: str, answer: str) -> None:
    assert code in audit_rows(row(request_, answer))[0]


def test_copies_among_rows() -> None:
    request, answer = (next(texts(1, 30, seed)) + "." for seed in (1, 2))
    rows = [
        row(request, answer),
        row(request, answer),
        row(request.upper() + "  ", answer + ".."),
        row(request, "Nothing like it."),
        row("Something else.", answer),
    ]
    assert audit_rows(*rows) == [set(), {"duplicate"}, {"near_duplicate"}, {"other_answer"}, set()]


def test_a_near_copy_in_another_split_is_reported_and_stays() -> None:
    request = next(texts(1, 30))
    auditor = Auditor(["crosses_splits"], HeldOut())
    auditor.remember(row(request, "Yes."), "validation", "file:1")
    near = row(edited(request, random.Random(0)), "No.")
    assert "validation" in auditor.findings(near, "sft")["crosses_splits"]
    assert not auditor.findings(near, "validation")


def test_evaluation_prompts_are_found_changed_and_inside_longer_texts() -> None:
    rng = random.Random(0)
    held_out_prompts = HeldOut()
    prompts = [*texts(60, 12, seed=1)]
    for prompt in prompts:
        held_out_prompts.add(prompt, prompt)
    for change in (
        str,
        str.upper,
        lambda text: f"Please, answer this: {text} Say why.",
        partial(edited, rng=rng),
    ):
        matches = [held_out_prompts.find_in(change(prompt)) for prompt in prompts]
        assert [match and match.name for match in matches] == prompts
    assert not any(held_out_prompts.find_in(text) for text in texts(300, 40, seed=2))


def talk(*turns: str) -> ParsedRow:
    """Return a conversation that begins and ends with a user turn, with an answer."""
    roles = cycle(["user", "assistant"])
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return ParsedRow(messages, ["So."])


def test_a_short_evaluation_prompt_is_found_only_verbatim_or_as_a_whole_request() -> None:
    """Accept "Why?" in a longer conversation, because many conversations contain it."""
    question = "What is the meaning of life?"
    assert len(question.split()) < FEWEST
    found = {"contaminated"}
    for request, expected in (
        (talk(question), found),
        (talk(f"Answer: {question}"), found),
        (talk("What is the meaning of the word tide?"), set()),
        (talk("why"), found),
        (talk("Say why the moon is near."), set()),
        (talk("How?", "So.", "Why?"), set()),
    ):
        [codes] = audit_rows(request, against=(question, "Why?"))
        assert codes & found == expected


def test_preferences() -> None:
    long = next(texts(1, 40))
    rows = [
        row("a", long, "Quite another answer.", scores=[1.0, 0.0]),
        row("b", long, long + " indeed", scores=[1.0, 0.0]),
        row("c", "Yes, oaks.", "No, elms.", scores=[1.0, 0.0]),
        row("c", "No, elms.", "Yes, oaks.", scores=[1.0, 0.0]),
        row("c", "Yes, oaks.", "No, elms.", scores=[0.5, 0.5]),
    ]
    of_pairs = {"alike", "lopsided", "contradicted"}
    assert [codes & of_pairs for codes in audit_rows(*rows)] == [
        {"lopsided"},
        {"alike"},
        set(),
        {"contradicted"},
        set(),
    ]


def test_sums_that_hold_and_sums_that_do_not() -> None:
    for sum_, value in (("3 + 4 × 5", 23), ("1,200 - 30 - 4", 1166), ("$12 * 3", 36)):
        assert mistakes.find_wrong_sum(f"It is {sum_} = {value}.") is None
        assert mistakes.find_wrong_sum(f"It is {sum_} = {value + 1}.")
    assert mistakes.find_wrong_sum("So 1 / 3 = 0.33 or 1/3 = 33%.") is None


def test_real_addresses_are_personal_data() -> None:
    for address in ("ivan.petrov@mail.ru", "j.smith@mail.utoronto.ca", "212-736-5000"):
        assert faults.personal(f"Write to {address}.") == address
    for invented in ("ann@example.com", "555-123-4567", "212-000-1234"):
        assert faults.personal(f"Write to {invented}.") is None


def test_an_account_is_personal_if_its_check_digits_are_right() -> None:
    """The example of ISO 13616, and the same with another digit."""
    account = "GB82 WEST 1234 5698 7654 32"
    assert faults.personal(f"Pay to {account}.") == account
    assert faults.personal(f"Pay to {account[:-1]}3.") is None


def test_a_request_that_says_nothing_else_has_no_marker_of_an_input() -> None:
    assert faults.says_no_input("Name a tree.\n\n<noinput>") == "<noinput>"
    assert faults.says_no_input("<noinput>") is None


def test_every_turn_and_every_answer_is_searched_for_what_must_not_be_learnt() -> None:
    key = "key = AKIA" + "ABCDEFGHIJKLMNOP"
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": key}]
    earlier = ParsedRow([*turns, {"role": "user", "content": "Thanks."}], ["You are welcome."])
    assert "secret" in audit_rows(earlier)[0]
    assert "secret" in audit_rows(row("Name a tree.", "An oak.", key, scores=[1.0, 0.0]))[0]


def test_texts_of_other_scripts_are_compared_by_their_own_words() -> None:
    prompts = HeldOut()
    prompts.add("请解释为什么海水会涨落并举一个例子", "eval.jsonl:1")
    assert prompts.find_in("今天老师问：请解释为什么海水会涨落并举一个例子，谢谢你。")
    hindi = HeldOut()
    hindi.add("मोर कहाँ है", "eval.jsonl:1")
    assert hindi.find_in("मोर कहाँ है") and not hindi.find_in("मीर कहीं हो"), "vowel signs are letters"
    assert audit_rows(row("🙂🙂", "🎉🎉"), row("😭", "💔!")) == [set(), set()]
