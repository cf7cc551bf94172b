"""The codes of an audit: a description of each fault and, for faults of a single row, the function that finds it."""

from collections.abc import Callable
from typing import NamedTuple

from stages.curation import answer_rules
from stages.curation.audit import (
    answers,
    arithmetic,
    contamination,
    near_duplicates,
    personal_data,
    promised_form,
    requests,
)

# The default threshold by code; `data.audit.thresholds` replaces it.
THRESHOLDS = {
    "repetition": answer_rules.REPEATED,  # largest share of an answer's runs of words that may be repetitions
    "near_duplicate": near_duplicates.ALIKE,  # share of all word pairs in two texts that both texts have
    "crosses_splits": near_duplicates.ALIKE,
    "contaminated": contamination.SHARE,  # share of an evaluation prompt's runs of words that the text has
    "alike": 0.9,  # share of word pairs that the chosen and the rejected answer have in common
    "lopsided": 5.0,  # ratio of words between the longer and the shorter answer
}


class Code(NamedTuple):
    """An audit code: its description, and a function that finds its evidence in a request and an answer."""

    description: str
    find: Callable[[str, str], str | None]


REQUEST = {
    "input_marker": Code("the request has a marker instead of an input", lambda q, _: requests.says_no_input(q)),
    "needs_link": Code("the request needs a web page that the model cannot read", lambda q, _: requests.needs_link(q)),
    "needs_attachment": Code("the request needs a file that is missing", lambda q, _: requests.needs_attachment(q)),
    "asks_for_picture": Code("the request asks for a picture", lambda q, _: requests.asks_for_picture(q)),
}
ANSWER = {
    "one_character": Code("the answer is one character", lambda _, a: answers.one_character(a)),
    "no_answer": Code("the answer is a marker such as N/A", lambda _, a: answers.no_answer(a)),
    "echo": Code("the answer repeats the request or its input", answers.echo),
    "unfinished": Code("the answer is truncated", lambda _, a: answers.unfinished(a)),
    "merged": Code("the answer contains further requests", lambda _, a: answers.merged(a)),
    "refusal": Code("the answer refuses or apologizes", lambda _, a: a[:80] if answer_rules.is_refusal(a) else None),
    "boilerplate": Code("the answer mentions that a model wrote it", lambda _, a: answers.boilerplate(a)),
    "repetition": Code("the answer repeats itself", answers.repeats),
    "wrong_sum": Code("a sum in the answer is wrong", lambda _, a: arithmetic.find_wrong_sum(a)),
    "broken_promise": Code("the answer lacks the form that the request asks for", promised_form.find_missing_form),
    "other_language": Code("the answer is in another language than the request", answers.other_language),
    "stale": Code("the answer depends on the date when it was written", lambda _, a: answers.stale(a)),
    "placeholder": Code("the answer has a blank that was not filled in", lambda _, a: answers.placeholder(a)),
}
TEXT = {
    "damaged": Code("the text has damaged or invisible characters", lambda q, a: answers.damaged(f"{q}\n{a}")),
    "secret": Code("the text contains a key or a token", lambda q, a: personal_data.secret(f"{q}\n{a}")),
    "personal": Code("the text contains personal data", lambda q, a: personal_data.personal(f"{q}\n{a}")),
}
ACROSS = {
    "duplicate": "an earlier row has the same request and answer",
    "near_duplicate": "an earlier row has nearly the same request and answer",
    "other_answer": "an earlier row has the same request with another answer",
    "crosses_splits": "another split has nearly the same request",
    "contaminated": "the row contains a prompt of an evaluation file",
}
COMPARED = {
    "alike": "chosen and rejected are nearly the same",
    "lopsided": "one answer is many times longer than the other",
    "contradicted": "another row has the opposite preference",
}
ALONE = REQUEST | ANSWER | TEXT
DESCRIPTIONS = {name: code.description for name, code in ALONE.items()} | ACROSS | COMPARED
