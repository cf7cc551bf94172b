"""The codes of an audit: what each says of a row, and for those that a row shows by itself, what finds it."""

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

# For codes that have a threshold, which it is: `data.audit.thresholds` sets others.
THRESHOLDS = {
    "repetition": answer_rules.REPEATED,  # of an answer's runs of words, the share that may have been there before
    "near_duplicate": near_duplicates.ALIKE,  # of all pairs of words in two texts, the share that both have
    "crosses_splits": near_duplicates.ALIKE,
    "contaminated": contamination.SHARE,  # of an evaluation prompt's runs of words, the share that a text has
    "alike": 0.9,  # of their pairs of words, the share that a chosen and a rejected answer have in common
    "lopsided": 5.0,  # times as long may one answer be as the other
}


class Code(NamedTuple):
    """What a code says of a row, and what finds it: in the request and the answer."""

    told: str
    find: Callable[[str, str], str | None]


REQUEST = {
    "input_marker": Code("a marker stands where an input should", lambda q, _: requests.says_no_input(q)),
    "needs_link": Code("the request needs a page that is not there", lambda q, _: requests.needs_link(q)),
    "needs_attachment": Code("the request needs a file that is not there", lambda q, _: requests.needs_attachment(q)),
    "asks_for_picture": Code("the request asks for a picture", lambda q, _: requests.asks_for_picture(q)),
}
ANSWER = {
    "one_character": Code("the answer is one character", lambda _, a: answers.one_character(a)),
    "no_answer": Code("the answer is a marker for none", lambda _, a: answers.no_answer(a)),
    "echo": Code("the answer repeats the request or its input", answers.echo),
    "unfinished": Code("the answer breaks off", lambda _, a: answers.unfinished(a)),
    "merged": Code("the answer goes on with further requests", lambda _, a: answers.merged(a)),
    "refusal": Code("the answer refuses, or regrets", lambda _, a: a[:80] if answer_rules.refuses(a) else None),
    "boilerplate": Code("the answer speaks of the model", lambda _, a: answers.boilerplate(a)),
    "repetition": Code("the answer says the same again and again", answers.repeats),
    "wrong_sum": Code("a sum in the answer comes out wrong", lambda _, a: arithmetic.wrong(a)),
    "broken_promise": Code("the answer has not the form that was asked for", promised_form.broken),
    "other_language": Code("the answer is in another script than was asked for", answers.other_language),
    "stale": Code("the answer says when it was true", lambda _, a: answers.stale(a)),
    "placeholder": Code("a blank in the answer was not filled in", lambda _, a: answers.placeholder(a)),
}
TEXT = {
    "damaged": Code("letters are damaged, or nobody sees them", lambda q, a: answers.damaged(f"{q}\n{a}")),
    "secret": Code("a key or a token", lambda q, a: personal_data.secret(f"{q}\n{a}")),
    "personal": Code("an address or a number of somebody's", lambda q, a: personal_data.personal(f"{q}\n{a}")),
}
ACROSS = {
    "duplicate": "request and answer came before",
    "near_duplicate": "request and answer are nearly those of an earlier row",
    "other_answer": "the request came before, with another answer",
    "crosses_splits": "the request is nearly one of another split",
    "contaminated": "a prompt of an evaluation file stands in the row",
}
COMPARED = {
    "alike": "chosen and rejected are nearly the same",
    "lopsided": "one answer is many times as long",
    "contradicted": "another row prefers them the other way round",
}
ALONE = REQUEST | ANSWER | TEXT
TOLD = {name: code.told for name, code in ALONE.items()} | ACROSS | COMPARED
