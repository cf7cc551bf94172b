"""Is an answer in another language than its request? Told by scripts, and in Latin script by English words alone."""

import unicodedata
from collections import Counter

from stages.config.installation import read_beside
from stages.store.text_units import lower_words

TEXTS = read_beside(__file__)
FUNCTION_WORDS = frozenset(TEXTS["function_words"].split())
ENGLISH_ALONE = frozenset(TEXTS["english_alone"].split())
FEWEST = 0.15  # smallest share of function words in English prose
ENOUGH = 12  # words of prose that tell that a text is not in English
STRAY = 0.1  # share of an answer's letters that may be of another script
LATIN = "LATIN"
# Japanese is written in all three, and Chinese in one of them.
SAME = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "FULLWIDTH": LATIN}


def differ(request: str, answer: str) -> bool:
    """Return whether an answer is in another script than its request, or one of the two in English alone."""
    if in_other_script(request, answer):
        return True
    return {is_english(request), is_english(answer)} == {True, False}


def in_other_script(request: str, answer: str) -> bool:
    """Return whether an answer has letters of another script than its request. A name or code is Latin anywhere."""
    asked, given = scripts(request), scripts(answer)
    if not asked or not given:
        return False
    main = asked.most_common(1)[0][0]
    foreign = sum(count for script, count in given.items() if script not in (main, LATIN))
    if foreign > STRAY * given.total():
        return True
    return main != LATIN and {*given} == {LATIN} and len(lower_words(answer)) >= ENOUGH


def scripts(text: str) -> Counter[str]:
    """Return the number of letters of each script, as Unicode names them."""
    names = (unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha())
    return Counter(SAME.get(name, name) for name in names)


def is_english(text: str) -> bool | None:
    """Return whether a text in Latin script is in English; None if it is too short to tell."""
    prose = [word for word in lower_words(text) if word.isalpha()]
    common = sum(word in FUNCTION_WORDS for word in prose)
    if len(prose) >= ENOUGH:
        return common >= FEWEST * len(prose)
    return True if ENGLISH_ALONE.intersection(prose) else None
