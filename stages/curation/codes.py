"""The codes of an audit: what each says of a row, and for those that a row shows by itself, what finds it."""

from collections.abc import Callable
from typing import NamedTuple

from stages.curation import answered, arithmetic, asked, held_out, near, private, promises, rules

# For codes that have a threshold, which it is: `data.audit.thresholds` sets others.
THRESHOLDS = {
    "repetition": rules.REPEATED,  # of an answer's runs of words, the share that may have been there before
    "near_duplicate": near.ALIKE,  # of all pairs of words in two texts, the share that both have
    "crosses_splits": near.ALIKE,
    "contaminated": held_out.SHARE,  # of an evaluation prompt's runs of words, the share that a text has
    "alike": 0.9,  # of their pairs of words, the share that a chosen and a rejected answer have in common
    "lopsided": 5.0,  # times as long may one answer be as the other
}


class Code(NamedTuple):
    """What a code says of a row, and what finds it: in the request and the answer."""

    told: str
    find: Callable[[str, str], str | None]


REQUEST = {
    "input_marker": Code("a marker stands where an input should", lambda q, _: asked.says_no_input(q)),
    "needs_link": Code("the request needs a page that is not there", lambda q, _: asked.needs_link(q)),
    "needs_attachment": Code("the request needs a file that is not there", lambda q, _: asked.needs_attachment(q)),
    "asks_for_picture": Code("the request asks for a picture", lambda q, _: asked.asks_for_picture(q)),
}
ANSWER = {
    "one_character": Code("the answer is one character", lambda _, a: answered.one_character(a)),
    "no_answer": Code("the answer is a marker for none", lambda _, a: answered.no_answer(a)),
    "echo": Code("the answer repeats the request or its input", answered.echo),
    "unfinished": Code("the answer breaks off", lambda _, a: answered.unfinished(a)),
    "merged": Code("the answer goes on with further requests", lambda _, a: answered.merged(a)),
    "refusal": Code("the answer refuses, or regrets", lambda _, a: a[:80] if rules.refuses(a) else None),
    "boilerplate": Code("the answer speaks of the model", lambda _, a: answered.boilerplate(a)),
    "repetition": Code("the answer says the same again and again", answered.repeats),
    "wrong_sum": Code("a sum in the answer comes out wrong", lambda _, a: arithmetic.wrong(a)),
    "broken_promise": Code("the answer has not the form that was asked for", promises.broken),
    "other_language": Code("the answer is in another script than was asked for", answered.other_language),
    "stale": Code("the answer says when it was true", lambda _, a: answered.stale(a)),
    "placeholder": Code("a blank in the answer was not filled in", lambda _, a: answered.placeholder(a)),
}
TEXT = {
    "damaged": Code("letters are damaged, or nobody sees them", lambda q, a: answered.damaged(f"{q}\n{a}")),
    "secret": Code("a key or a token", lambda q, a: private.secret(f"{q}\n{a}")),
    "personal": Code("an address or a number of somebody's", lambda q, a: private.personal(f"{q}\n{a}")),
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
