"""Constraints on the beginning and the end of an answer."""

import re

from stages.store.text_units import lower_words, sentences
from stages.tasks.constraint import Side, constraint, worded

# These phrases break no other constraint: they have no rare letters, no commas, and no forbidden words.
PHRASES = (
    "To begin with|As it happens|Here is one thought|In plain words|On the whole|Long story short|At a glance|"
    "In a nutshell|For a start|Not so long ago|All in all|In short"
).split("|")
SENTENCES = (
    "That is all there is to it.|And that is the end of it.|The rest is up to chance.|So ends this note.|"
    "There is little left to add.|That is the whole idea.|It all starts here.|The rest can be told later.|"
    "And there it all ends.|All the rest is detail."
).split("|")
WORDS = "time home people day start end world light hands together again tomorrow house morning".split()
QUOTES = "\"'“”‘’«»"


@constraint(Side.test, "start", lambda rng, request: {"phrase": rng.choice(PHRASES)})
@worded("""
    Begin your answer with the words "{phrase}".
    The first words of your answer must be "{phrase}".
    Start with exactly these words: "{phrase}".
    Open with "{phrase}" and go on from there.
    Let your answer start with the phrase "{phrase}", word for word.
""")
def start_phrase(answer: str, phrase: str) -> bool:
    """Ignore quotation marks and Markdown before the phrase."""
    return bool(re.match(rf"[{QUOTES}*_#>\s-]*{re.escape(phrase)}(?![^\W_]|['’-]\w)", answer, re.IGNORECASE))


@constraint(Side.aside, "end", lambda rng, request: {"sentence": rng.choice(SENTENCES)})
@worded("""
    Finish with this exact sentence, and write nothing after it: "{sentence}"
    The last sentence of your answer must be "{sentence}", word for word, with nothing after it.
    Close your answer with the sentence "{sentence}" and then stop.
    Let "{sentence}" be the very last sentence you write, without any change.
    End with "{sentence}" as a sentence of its own; no other text may follow.
""")
def end_phrase(answer: str, sentence: str) -> bool:
    return [last.strip(QUOTES).lower() for last in sentences(answer)[-1:]] == [sentence.lower()]


@constraint(Side.test, "start letters words", lambda rng, request: {"letter": rng.choice("ABCDFHILMNOPRSTW")})
@worded("""
    The first word of your answer must begin with the letter {letter}.
    Begin your answer with a word that starts with the letter {letter}.
    Choose a first word whose first letter is {letter}.
    Let the letter {letter} be the very first letter of your answer.
    Start with any word you like, as long as it begins with the letter {letter}.
""")
def first_word_letter(answer: str, letter: str) -> bool:
    """Ignore the marker of a list item, such as `1.` or `a)`."""
    first = re.search(r"[^\W_]", re.sub(r"^(?:\d+|[A-Za-z])[.)]\s", "", answer))
    return first is not None and first[0].lower() == letter.lower()


@constraint(Side.test, "end words", lambda rng, request: {"word": rng.choice(WORDS)})
@worded("""
    The last word of your answer must be "{word}".
    End your answer with the word "{word}"; only a punctuation mark may follow.
    Let "{word}" be the very last word that you write.
    Write your answer so that its final word is "{word}".
    Choose your closing sentence so that it ends in the word "{word}".
""")
def last_word(answer: str, word: str) -> bool:
    return lower_words(answer.replace("_", " "))[-1:] == [word.lower()]


@constraint(Side.aside, "end questions")
@worded("""
    End with a question to the reader, so that the last character of your answer is a question mark.
    Your answer must close with a question, and nothing may follow its question mark.
    Let the very last sentence ask the reader something and end in a question mark.
    Finish by asking your reader a question; its question mark is the last thing you write.
    The last thing in your answer should be a question with a question mark at its end.
""")
def end_question(answer: str) -> bool:
    return answer.endswith(("?", "？"))


@constraint(Side.aside, "end exclamations")
@worded("""
    The last character of your answer must be an exclamation mark.
    End your answer with an exclamation mark.
    Let your final sentence close with an exclamation mark, and write nothing after it.
    Finish with an exclamation: its exclamation mark is the last thing you write.
    Put an exclamation mark at the very end of your answer.
""")
def end_exclamation(answer: str) -> bool:
    return answer.endswith(("!", "！"))


@constraint(Side.aside, "start end length")
@worded("""
    Begin and end with the same sentence, word for word, and put at least one other sentence between.
    The last sentence of your answer must repeat the first one exactly. Write at least three sentences in all.
    Write three or more sentences, and let the first sentence come back unchanged as the last.
    Close your answer with the very sentence that opened it, with one or more sentences between the two.
    Your first and your last sentence should be identical, and your answer should have at least three sentences.
""")
def same_start_and_end(answer: str) -> bool:
    words_by_sentence = [lower_words(sentence.replace("_", " ")) for sentence in sentences(answer)]
    return len(words_by_sentence) >= 3 and words_by_sentence[0] == words_by_sentence[-1]


@constraint(Side.aside, "start layout")
@worded("""
    Begin your answer with a number in digits, such as 3 or 2020; the number of a list item does not count.
    The first thing in your answer must be a number written in digits, and not as the start of a numbered list.
    Start your first sentence with a number, written in digits (not "1." as in a list).
    Open with a figure such as 12 or 1850, in digits, as part of a sentence and not of a numbered list.
    Your answer has to start with a number in digits that is not the marker of a list.
""")
def start_with_number(answer: str) -> bool:
    return bool(re.match(rf"(?:#+ +)?[{QUOTES}*_~$€£]*(?!\d{{1,2}}[.)](?!\d))\d", answer))


@constraint(Side.test, "start questions")
@worded("""
    Begin your answer with a question.
    The first sentence of your answer must be a question that ends in a question mark.
    Open with a question, and then go on.
    Let your first sentence ask something and end with a question mark.
    Start by asking a question; it must be the very first sentence.
""")
def start_with_question(answer: str) -> bool:
    return any(first.rstrip(f"{QUOTES}!*_)").endswith(("?", "？")) for first in sentences(answer)[:1])
