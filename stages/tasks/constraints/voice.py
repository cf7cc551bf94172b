"""Constraints on the speaker and the addressee, the language, and figures of speech."""

import re

from stages.store.text_units import words
from stages.tasks.constraint import Side, constraint, count_of, worded
from stages.tasks.words import NAMES

# Lists of frequent words. "la" belongs to three languages, so the words of a whole answer decide its language.
FREQUENT = {
    "English": "a all an and are as at be been but by can do does for from had has have he her his how i if in into "
    "is it its more my no not of on one or our she so than that the their there these they this to was we were what "
    "when which who will with without would you your",
    "Spanish": "a al cada como con cuando de del desde después donde el ella en entre es esta estas este esto estos "
    "está están fue ha había hasta hay la las le les lo los luego me mi muy más no nos o para pero por porque puede "
    "pueden que qué se según ser si sin sobre son su sus sí también te tiene todo todos tu un una uno y ya",
    "French": "a au aux avec c ce ces cette chaque comme d dans de des deux du elle elles en est et il ils j je l "
    "la le les leur leurs lui ma mais me mon même n ne nous on ont ou où par pas peut plus pour qu que qui s sa se "
    "ses si son sont sous sur te tous tout très tu un une vers votre vous y à être",
    "German": "aber als am an auch auf aus bei bis das dass dem den der des die doch du durch ein eine einem einen "
    "einer er es für hat ich ihr ihre im in ist kann kein man mehr mit nach nicht noch nur oder sehr sein sich sie "
    "sind so um und uns unter viele vom von vor war was weil wenn wer werden wie wir wird zu zum zur über",
    "Italian": "a ad ai al alla alle anche che chi ci come con cui d da dal dalla dei del della delle di dove due e "
    "ed era gli ha ho i il in io l la le lo loro ma mi molto ne nei nel nella no non o ogni per perché più poi può "
    "quando quella quello questa questo se si sono su sua sul suo ti tu tutti tutto un una uno è",
}
KNOWN = {language: frozenset(word_list.split()) for language, word_list in FREQUENT.items()}
# Exceptions: "I would like a boat" and "as soon as it rains" are not comparisons.
LIKING = frozenset("i you we they would d to who people may might not t".split())
AS_AS = re.compile(
    r"\bas\s+(?!(?:well|soon|it|you|we|they|he|she|i|a|an|the|if|to)\b|(?:long|far)\s+as\s+(?!an?\b))"
    r"(?:[\w'’*-]+\s+){1,3}as\b(?!\s+possible)",
    re.IGNORECASE,
)
UNITS = "k?m|cm|k?g|ml|(?:kilo)?met(?:re|er)s|feet|miles|degrees|calories|(?:kilo)?grams|lit(?:re|er)s|dollars|euros"


@constraint(Side.train, "voice words", count_of(2, 3, 4))
@worded("""
    Speak to the reader directly: use "you", "your", "yours" or "yourself" at least {count} times in all.
    Address your reader as "you". The words "you", "your", "yours" and "yourself" should add up to {count} or more.
    Write in the second person, with at least {count} uses of "you", "your", "yours" or "yourself".
    Talk to the reader, and say "you", "your", "yours" or "yourself" no fewer than {count} times.
    Your answer should turn to its reader at least {count} times with "you", "your", "yours" or "yourself".
""")
def second_person(answer: str, count: int) -> bool:
    return _times("you|your|yours|yourself", answer) >= count


@constraint(Side.train, "voice words", count_of(2, 3, 4))
@worded("""
    Speak of yourself in your answer: use "I", "me", "my" or "mine" at least {count} times in all.
    Write in the first person, with at least {count} uses of "I", "me", "my" or "mine".
    Tell it as your own view or story. The words "I", "me", "my" and "mine" should add up to {count} or more.
    Let the writer appear in the text: say "I", "me", "my" or "mine" no fewer than {count} times.
    Your answer should be personal, and "I", "me", "my" or "mine" should come up {count} times or more.
""")
def first_person(answer: str, count: int) -> bool:
    return _times(r"(?<!\w\.)i(?!\.\w)|me|my|mine", answer) >= count  # not the I of "A.I." or "i.e."


@constraint(Side.train, "voice words", lambda rng, request: {"name": rng.choice(NAMES)})
@worded("""
    Your reader is called {name}. Address {name} by name at least once.
    Write to a reader named {name}, and use that name when you speak to them.
    Speak to {name} directly, and call them by their name at least once.
    Imagine that {name} is reading this: address them by name somewhere in your answer.
    The answer is for {name}, so turn to {name} by name in it.
""")
def address_by_name(answer: str, name: str) -> bool:
    """Ignore possessives: "Anna's garden" does not address Anna."""
    return _times(rf"{re.escape(name)}(?!['’]s)", answer) > 0


@constraint(
    Side.validation,
    "language words letters case",
    lambda rng, request: {"language": rng.choice([language for language in KNOWN if language != "English"])},
)
@worded("""
    Answer in {language}.
    Write your whole answer in {language}, not in English.
    Your reader understands only {language}, so use that language throughout.
    The language of your answer must be {language}.
    Please reply in {language} from beginning to end.
""")
def in_language(answer: str, language: str) -> bool:
    """Require three frequent words of the language, more than of any other, and two thirds of all frequent words."""
    answer_words = re.findall(r"[^\W\d_]+", answer.lower())
    counts = {name: sum(word in frequent for word in answer_words) for name, frequent in KNOWN.items()}
    own = counts.pop(language)
    all_known = sum(any(word in frequent for frequent in KNOWN.values()) for word in answer_words)
    return own >= 3 and own > max(counts.values()) and 3 * own >= 2 * all_known


@constraint(Side.test, "voice end words")
@worded("""
    Thank the reader somewhere in your answer, with the words "thank you" or "thanks".
    Say "thank you" or "thanks" to your reader at some point.
    Your answer should include a word of gratitude to the reader: "thanks" or "thank you".
    Be polite and thank whoever reads this, using "thank you" or "thanks".
    Make sure that "thank you" or "thanks" is said to the reader at least once.
""")
def thank_reader(answer: str) -> bool:
    """Ignore "thanks to the wind", which does not thank the reader."""
    to_others = r"\s+to\s+(?!(?:you|all|everyone)\b|(?:\w+\s+)?readers?\b)"
    return _times(rf"thank\s+you|thanks\b(?!{to_others})", answer) > 0


@constraint(Side.aside, "quotes", count_of(2, 3))
@worded("""
    Include at least {count} pieces of direct speech in double quotation marks, each of two words or more.
    Let somebody speak: put at least {count} quotations of two or more words each in double quotation marks.
    Your answer must contain {count} or more pieces of direct speech, each of at least two words in double quotes.
    Quote spoken words at least {count} times, each time in double quotation marks and with more than one word.
    Use double quotation marks for direct speech no fewer than {count} times, with two or more words between them.
""")
def direct_speech(answer: str, count: int) -> bool:
    pieces = re.findall(r'"([^"\n]+)"', re.sub("[“”„]", '"', answer))
    return sum(len(words(piece)) >= 2 for piece in pieces) >= count


@constraint(Side.test, "words")
@worded("""
    Name at least one year between 1000 and 2099, written with four digits.
    Mention a year in your answer as a number of four digits, from 1000 to 2099.
    Your answer must say in which year something happens or happened, in four digits (1000 to 2099).
    Include a year such as 1850 or 2031, in digits, no earlier than 1000 and no later than 2099.
    Somewhere in what you write, give a four-digit year from 1000 to 2099.
""")
def name_a_year(answer: str) -> bool:
    year = rf"(?<![\w$€£#])(?<!\s\d\.)(?:1\d{{3}}|20\d\d)(?![\w%]|[.,]\d|[ -]?(?:{UNITS})\b)"
    return bool(re.search(year, answer.replace("_", " ")))


@constraint(Side.test, "voice words")
@worded("""
    Do not address the reader: never use "you", "your", "yours", "yourself" or "yourselves".
    Write without the words "you", "your", "yours", "yourself" and "yourselves".
    Your answer must not contain "you", "your", "yours", "yourself" or "yourselves".
    Avoid the second person completely, that is, "you", "your", "yours", "yourself" and "yourselves".
    The words "you", "your", "yours", "yourself" and "yourselves" are not allowed.
""")
def no_you(answer: str) -> bool:
    return _times("you|your|yours|yourself|yourselves", answer) == 0


@constraint(Side.test, "words")
@worded("""
    Use at least one comparison with "like a", "like an", "like the" or "as ... as".
    Compare something to something else, with "like a", "like an", "like the" or "as ... as".
    Your answer must contain a comparison, such as "like a ...", "like an ...", "like the ..." or "as big as".
    Bring in a simile that uses "like a", "like an", "like the" or "as ... as".
    Somewhere, say what a thing is like: with "like a", "like an" or "like the", or in the form "as old as".
""")
def comparison_used(answer: str) -> bool:
    plain = answer.replace("_", " ")
    starts = [match.start() for match in re.finditer(r"\blike\s+(?:a|an|the)\b", plain, re.IGNORECASE)]
    before = [re.search(r"(\w+)\s+$", plain[max(0, start - 20) : start].lower()) for start in starts]
    return any(not word or word[1] not in LIKING for word in before) or bool(AS_AS.search(plain))


def _times(pattern: str, answer: str) -> int:
    """Return how often a pattern occurs as whole words. Case and the underscores of emphasis are ignored."""
    return len(re.findall(rf"\b(?:{pattern})\b", answer.replace("_", " "), re.IGNORECASE))
