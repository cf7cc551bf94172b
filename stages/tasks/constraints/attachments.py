"""Constraints on additions to an answer: a postscript, a signature, a date, a source, a rating, hashtags, emoji."""

import re

from stages.store.text_units import lines, paragraphs
from stages.tasks.constraint import Side, constraint, count_of, worded


@constraint(Side.test, "brackets", count_of(2, 3, 4))
@worded("""
    Put at least {count} placeholders in square brackets, such as [address], in your answer.
    Leave at least {count} details open, each as a placeholder in square brackets such as [name] or [date].
    Your answer should hold {count} or more placeholders to fill in later, written in square brackets like [city].
    I want a template to fill in. Name each blank in square brackets, as in [phone number], and leave {count} or more.
    In at least {count} places, write a placeholder such as [price], with its square brackets, and no real detail.
    There must be no fewer than {count} placeholders in square brackets, for example [place] or [your name].
""")
def placeholders(answer: str, count: int) -> bool:
    inside = [part.strip() for part in re.findall(r"\[([^\[\]\n]+)\](?!\()", answer)]
    named = [part for part in inside if any(map(str.isalpha, part)) and part.lower() != "x"]  # "[x]" is a ticked box
    return len(named) >= count


@constraint(Side.test, "end layout", lambda rng, request: {"marker": rng.choice(["P.S.", "P.P.S."])})
@worded("""
    Below your answer, add a postscript: a last line or paragraph that begins with "{marker}" and says something more.
    After the answer itself, finish with a postscript in its own line or paragraph, beginning with "{marker}".
    Once you have answered, close with one more line or paragraph that starts with "{marker}" and adds a remark.
    Do not stop at the answer: the last line or paragraph, below it, must be a postscript that opens with "{marker}".
    Your reply needs a postscript as its last line or paragraph, under the answer, and "{marker}" must open it.
""")
def postscript(answer: str, marker: str) -> bool:
    ends = lines(answer)[1:][-1:] + paragraphs(answer)[1:][-1:]
    return any(_labelled(end, re.escape(marker)) for end in ends)


@constraint(Side.aside, "whole")
@worded("""
    Give two different answers, with one line of six asterisks (******) between them.
    Answer twice, in two different ways, and separate the two with a single line that is just ******.
    I would like to choose between two different answers. Divide them by one line of six asterisks: ******
    Write one answer, then a line with only ****** on it, then a second answer that differs from the first.
    Your reply must be two different answers, parted by exactly one line of six asterisks, like this: ******
""")
def two_answers(answer: str) -> bool:
    parts = ["".join(part.casefold().split()) for part in re.split(r"(?m)^[ \t]*\*{6}[ \t\r]*$", answer)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@constraint(
    Side.aside,
    "end layout",
    lambda rng, request: {
        "name": rng.choice(["Mara", "Jonas", "Priya", "Tobias", "Elena", "Kofi", "Ingrid", "Samuel", "Yuki", "Rosa"])
    },
)
@worded("""
    Sign your answer as {name}: the last line, below the text, is that name, alone or after a closing such as "Best,".
    Below your answer, finish with a signature: a last line that is just "{name}" or a closing and the name.
    The last line, under the answer, must be the signature "{name}", by itself or after a dash or a word like "Yours,".
    Pretend that your name is {name} and sign below your answer. Only a closing or a dash may share that last line.
    After the answer, sign off as "{name}" on a last line of its own. A closing such as "Best," may precede the name.
""")
def signed(answer: str, name: str) -> bool:
    *before, last = lines(answer) or [""]
    signature = rf"(?:{_CLOSING})?(?:[-–—~]+ ?)?{re.escape(name)}[.!]?"
    return bool(before) and bool(re.fullmatch(signature, _plain(last), re.IGNORECASE))


@constraint(Side.test, "end words", count_of(2, 3, 4))
@worded("""
    Add at least {count} hashtags, such as #garden.
    Your answer should have {count} or more hashtags in it, written like #garden.
    Include hashtags as in a social media post, #travel for example, and no fewer than {count} of them.
    I want to see a minimum of {count} hashtags, each a hash sign with a word right after it.
    Use hashtags (#music is one) at least {count} times.
""")
def hashtags(answer: str, count: int) -> bool:
    return len(re.findall(r"(?<![\w#&/])#(?=\w*[^\W\d_])\w+", answer)) >= count


@constraint(Side.test, "words")
@worded("""
    Somewhere in your answer, give a rating in the form 7/10 or 7 out of 10, with a whole number from 0 to 10.
    Include a whole-number score from 0 to 10, written in digits like 6/10 or 6 out of 10.
    Rate something in your answer on a scale from 0 to 10. Use whole numbers in digits, as in 8/10 or 8 out of 10.
    Your answer must contain a score such as 4/10 or 4 out of 10, with a whole number in digits, at most 10, in front.
    I also want a mark out of 10 in there. Write a whole number from 0 to 10 and then "/10" or "out of 10".
""")
def rating(answer: str) -> bool:
    number = r"(?<![\w/.,−-])(?:10|[0-9])"
    return bool(re.search(rf"{number} ?(?:/|out of) ?10(?![\w/]|[.,][0-9])", _plain(answer), re.IGNORECASE))


@constraint(Side.aside, "start layout")
@worded("""
    Begin with a full date on a line of its own, like 12 May 2024, May 12, 2024 or 2024-05-12, and answer below it.
    The first line must be a date and nothing else, in the form 12 May 2024, May 12, 2024 or 2024-05-12. Then answer.
    Date your answer: above it, put one line with day, month and year, as in 12 May 2024, May 12, 2024 or 2024-05-12.
    Before you answer, write a date by itself on the first line. Write it like 3 June 2023, June 3, 2023 or 2023-06-03.
    I want a dated answer. Open it with a line that is only a date, like 8 July 2022, July 8, 2022 or 2022-07-08.
""")
def dated(answer: str) -> bool:
    first, *after = lines(answer) or [""]
    return bool(after) and bool(re.fullmatch(rf"(?:date: ?)?(?:\w+day,? )?{_DATE}[.:]?", _plain(first), re.IGNORECASE))


@constraint(Side.aside, "layout colons")
@worded("""
    Include a line that begins with "Note:" and goes on with some text.
    Add a side note on its own line. The line starts with "Note:" and the text of the note follows on that line.
    Somewhere in your answer, start a new line with "Note:" and write a remark after it on the same line.
    One line of your answer must open with "Note:", followed right there by what you want to point out.
    I want at least one remark set apart as a line of this form: "Note:" and then the remark.
""")
def side_note(answer: str) -> bool:
    return any(_labelled(line, "Note[*_]*:") for line in lines(answer))


@constraint(Side.aside, "end layout colons")
@worded("""
    Below your answer, add a last line that begins with "Source:" and names where the information comes from.
    After the answer, finish with one line that starts with "Source:" or "Sources:" and then tells what you used.
    The last line, under the answer, must open with "Source:", followed by the name of a book, a website or similar.
    Say where this can be looked up: the last line, under your answer, is "Source:" and then the name of the source.
    Once you have answered, name your source in a last line of its own. Start it with "Source:" or "Sources:".
""")
def source_line(answer: str) -> bool:
    return any(_labelled(line, "Sources?[*_]*:") for line in lines(answer)[1:][-1:])


@constraint(Side.aside, "emphasis", count_of(2, 3, 4))
@worded("""
    Use at least {count} emoji.
    Put {count} or more emoji in your answer.
    I would like some emoji in the text, no fewer than {count} of them.
    Your answer must have a minimum of {count} emoji in it.
    Brighten up the answer with emoji; there should be {count} at the least.
""")
def emoji_at_least(answer: str, count: int) -> bool:
    return len(re.findall(_EMOJI, answer)) >= count


_CLOSING = (
    r"(?:\w+ ){0,3}?(?:best|yours|regards|wishes|love|cheers|thanks|thank you|sincerely|warmly|truly|friend|signed)"
    r"(?: \w+)?(?:,| ?[-–—]) ?"
)
_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])"
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = (
    rf"(?:{_DAY}(?:st|nd|rd|th)?(?: of)? {_MONTH},? [0-9]{{4}}|{_MONTH} {_DAY}(?:st|nd|rd|th)?,? [0-9]{{4}}"
    r"|[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))"
)
# The characters that Unicode counts as emoji, without neighbours such as ★ and ✓.
_PICTURE = (
    "(?:[\U0001f004\U0001f0cf\U0001f170-\U0001f19a\U0001f201-\U0001f251\U0001f300-\U0001f3fa\U0001f400-\U0001f64f"
    "\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
    "⌚⌛⏩-⏳◽◾⬛⬜⭐⭕☀-☄☎☑☔☕☘☝☠☢☣☦☪☮☯☸-☺♀♂♈-♓♟♠♣♥♦♨♻♾♿"
    "⚒-⚗⚙⚛⚜⚠⚡⚧⚪⚫⚰⚱⚽⚾⛄⛅⛈⛎⛏⛑⛓⛔⛩⛪⛰-⛵⛷-⛺⛽"
    "✂✅✈-✍✏✒✔✖✝✡✨✳✴❄❇❌❎❓-❕❗❣❤➕-➗➡➰➿]"
    "|[\u2190-\u2bff](?=\ufe0f))[\ufe0f\U0001f3fb-\U0001f3ff]*"
)
# A flag has two letters, a keycap a digit and a frame; families and professions join several pictures.
_EMOJI = rf"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}(?:\u200d{_PICTURE})*"


def _plain(text: str) -> str:
    """Return the text without marks of emphasis and headings, and with single spaces."""
    return " ".join(re.sub(r"[*_#]", "", text).split())


def _labelled(text: str, label: str) -> bool:
    """Return whether the text begins with the pattern `label` and continues. Bold and italic marks are ignored."""
    return bool(re.match(rf"[*_]*{label}[\W_]*[^\W_]", text, re.IGNORECASE))
