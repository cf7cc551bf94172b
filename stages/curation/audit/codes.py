"""The codes of an audit: a description of each fault and, for faults of a single row, the function that finds it."""

from collections.abc import Callable

from stages.config.installation import read_beside
from stages.curation import answer_rules
from stages.curation.audit import faults, mistakes, overlap

# The default threshold by code; `data.audit.thresholds` replaces it.
THRESHOLDS = {
    # largest share of an answer's runs of words that may be repetitions
    "repetition": answer_rules.REPEATED,
    "near_duplicate": overlap.ALIKE,  # share of all word pairs in two texts that both texts have
    "crosses_splits": overlap.ALIKE,
    # share of an evaluation prompt's runs of words that the text has
    "contaminated": overlap.SHARE,
    "alike": 0.9,  # share of word pairs that the chosen and the rejected answer have in common
    "lopsided": 5.0,  # ratio of words between the longer and the shorter answer
}
DESCRIPTIONS: dict[str, str] = read_beside(__file__)

# returns the evidence of a fault in a request and an answer
Finder = Callable[[str, str], str | None]
REQUEST: dict[str, Finder] = {
    "input_marker": lambda q, _: faults.says_no_input(q),
    "needs_link": lambda q, _: faults.needs_link(q),
    "needs_attachment": lambda q, _: faults.needs_attachment(q),
    "asks_for_picture": lambda q, _: faults.asks_for_picture(q),
}
ANSWER: dict[str, Finder] = {
    "one_character": lambda _, a: a if len(a.strip()) == 1 else None,
    "no_answer": lambda _, a: faults.no_answer(a),
    "echo": faults.echo,
    "unfinished": lambda _, a: faults.unfinished(a),
    "merged": lambda _, a: faults.merged(a),
    "refusal": lambda _, a: a[:80] if answer_rules.is_refusal(a) else None,
    "boilerplate": lambda _, a: faults.first_match("boilerplate", a.replace("’", "'")),
    "repetition": faults.repeats,
    "wrong_sum": lambda _, a: mistakes.find_wrong_sum(a),
    "broken_promise": lambda q, a: (
        mistakes.wrong_count(q, a) or mistakes.excess_length(q, a) or mistakes.invalid_json(q, a)
    ),
    "other_language": faults.other_language,
    "stale": lambda _, a: faults.first_match("stale", a),
    "placeholder": lambda _, a: faults.first_match("placeholder", a),
}
TEXT: dict[str, Finder] = {  # these get all turns and answers of a row as the request
    "damaged": lambda text, _: faults.damaged(text),
    "control_token": lambda text, _: faults.first_match("control_token", text),
    "secret": lambda text, _: faults.secret(text),
    "personal": lambda text, _: faults.personal(text),
}
ALONE = REQUEST | ANSWER | TEXT
