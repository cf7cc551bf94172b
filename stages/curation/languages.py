"""Is an answer in another language than its request? Told by scripts and, for some languages in Latin script, by short
words that they have. What these do not tell is taken for the same language."""

import re
import unicodedata
from collections import Counter
from itertools import chain

from stages.config.installation import read_beside
from stages.store.text_units import lower_words, words

TEXTS = read_beside(__file__)
SENTENCES = {language: {*listed.split()} for language, listed in TEXTS["sentences"].items()}
WORDS = {
    language: SENTENCES[language] | {*names.split()} for language, names in TEXTS["names"].items()
}
LISTS_WITH = Counter(chain.from_iterable(WORDS.values()))
NAMED = re.compile(TEXTS["named"].replace("\n", ""), re.IGNORECASE)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
BARE_CODE = re.compile(
    r"^\s*(//|import\s|from\s\S+\simport|def\s|class\s|return\b|select\s)|[{};]\s*$|=>|==|\w\(\)",
    re.IGNORECASE | re.MULTILINE,
)
BEGINNING = re.compile(r"(?:\A|(?<=[^\W\d_][.!?])\s)\W*\w")  # of a sentence, but of no list's item
# Least evidence of a language: its words in a text, those of sentences counted twice
IN_REQUEST, IN_ANSWER = 3, 4
SURE = 2.5  # times as many words as of any other language
ENOUGH = 8  # words of an answer in Latin script: a shorter one may be a name
STRAY = 0.1  # share of an answer's letters that may be of another script
LATIN = "LATIN"
# Japanese is written in all three, and Chinese in one of them.
SAME = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "FULLWIDTH": LATIN}


def difference(request: str, answer: str) -> str | None:
    """Return how the languages of a request and its answer differ; None if they do not, or the request names one."""
    if NAMED.search(request):
        return None
    if in_other_script(request, answer):
        return "in another script"
    asked = language_of({word.lower() for word in words_of(request)}, IN_REQUEST)
    answered = words_of(answer)
    given = language_of({*filter(str.islower, answered)}, IN_ANSWER)  # English titles have capitals
    is_told = asked and given and asked != given and len(answered) >= ENOUGH
    return f"in {given}, and not in {asked}" if is_told else None


def in_other_script(request: str, answer: str) -> bool:
    """Return whether an answer has letters of another script than its request. A name or code is Latin anywhere."""
    if request.isascii() and answer.isascii():
        return False
    asked, given = scripts(request), scripts(answer)
    if not asked or not given:
        return False
    main = asked.most_common(1)[0][0]
    foreign = sum(count for script, count in given.items() if script not in (main, LATIN))
    if foreign > STRAY * given.total():
        return True
    return main != LATIN and {*given} == {LATIN} and len(lower_words(answer)) >= ENOUGH


def scripts(text: str) -> Counter[str]:
    """Return the number of letters of each script, as Unicode names them, without single letters, as of formulas."""
    words = [[c for c in word if c.isalpha()] for word in text.split()]
    letters = [c for word in words if len(word) > 1 for c in word]
    names = (unicodedata.name(c, "").partition(" ")[0] for c in letters)
    return Counter(SAME.get(name, name) for name in names)


def language_of(words: set[str], fewest: int) -> str | None:
    """Return the language of different words in Latin script; None if they do not tell: if the evidence is below
    `fewest`, if another language has nearly as much, or if none is a word of sentences. A word of several languages
    counts for each of them in part."""
    scores = {
        language: sum(1 / LISTS_WITH[word] for word in known & words)
        for language, known in WORDS.items()
    }
    language, second = sorted(scores, key=lambda language: -scores[language])[:2]
    of_sentences = len(SENTENCES[language] & words)
    enough = of_sentences and scores[language] + of_sentences >= fewest
    return language if enough and scores[language] >= SURE * scores[second] else None


def words_of(text: str) -> list[str]:
    """Return the words of a text without code, in lower case at the beginning of a sentence; none if code has no marks
    around it."""
    text = CODE.sub(" ", text).replace("’", "'")
    text = BEGINNING.sub(lambda beginning: beginning[0].lower(), text)
    return [] if BARE_CODE.search(text) else words(text)
