"""Constraints on headings, sections, steps, turns and paragraphs."""

import re
from itertools import pairwise, takewhile

from stages.store.text_units import BULLET, NUMBER, lines, paragraphs, sentences
from stages.tasks.constraint import Side, constraint, count_of, worded
from stages.tasks.words import NAMES


@constraint(Side.train, "layout", count_of(2, 3, 4))
@worded("""
    Use at least {count} headings, each on a line that begins with "# ", "## " or "### ".
    Put in at least {count} Markdown headings, written with one, two or three # signs and a space.
    Break your answer up with headings: at least {count} lines should start with "# ", "## " or "### ".
    I want to see no fewer than {count} headings in Markdown style (#, ## or ### before the text).
    There must be {count} or more headings, and every one of them starts its line with "#", "##" or "###".
    Organise it under headings marked with "#", "##" or "###", at least {count} of them.
""")
def headings(answer: str, count: int) -> bool:
    return len(re.findall(r"(?m)^ {0,3}#{1,3}[ \t]+[^\s#]", answer)) >= count


@constraint(Side.train, "layout", count_of(2, 3, 4))
@worded("""
    Divide your answer into {count} sections. Put a line such as "Section 1" or "Section 2" above the text of each.
    Write exactly {count} sections, each with a line of its own at the top ("Section 1", "Section 2" and so on).
    Your answer has {count} numbered sections, each headed by a line such as "Section 1: a title" and then its text.
    I need {count} sections in order, no more and no fewer. Announce each on a separate line, beginning "Section 1".
    Split it into {count} parts named "Section 1", "Section 2" and so forth; each name stands on a line above its part.
""")
def titled_sections(answer: str, count: int) -> bool:
    return _numbered(answer, r"(?i)section\s+(\d+)\s*(?:[:.(–—-].*)?$") == count


@constraint(
    Side.train, "layout", lambda rng, request: {"count": rng.choice([2, 3, 4]), "mark": rng.choice(["***", "---"])}
)
@worded("""
    Give your answer in {count} parts, with a line that holds only {mark} between one part and the next.
    Write {count} parts. Separate them by lines that consist of {mark} and nothing else.
    Split the answer into exactly {count} parts by putting {mark} alone on a line between them.
    There should be {count} parts, and wherever a new one begins, a line with just {mark} comes before it, except at \
the top.
    Between each of the {count} parts of your answer, and nowhere else, put a line with {mark} on it.
""")
def separated_by_rule(answer: str, count: int, mark: str) -> bool:
    parts = re.split(rf"(?m)^[ \t]*{re.escape(mark)}[ \t]*$", answer)
    return len(parts) == count and all(re.search(r"[^\W_]", part) for part in parts)


@constraint(Side.train, "layout colons", count_of(2, 3, 4))
@worded("""
    Present it as at least {count} steps, on lines that begin "Step 1:", "Step 2:" and so on.
    Go through it step by step: start the lines with "Step 1:", then "Step 2:", and have at least {count} of them.
    Number the stages of your answer as "Step 1:", "Step 2:", ..., each at the start of a line, {count} or more in all.
    I would like no fewer than {count} steps, each begun on a new line with its label ("Step 1:" for the first).
    Use the labels "Step 1:", "Step 2:" and so on, in order and at the beginning of a line, for {count} steps or more.
""")
def steps_labelled(answer: str, count: int) -> bool:
    return _numbered(answer, r"(?i)step\s+(\d+)\s*:") >= count


@constraint(
    Side.train, "start words length layout commas exclamations questions", lambda rng, request: {"text": request}
)
@worded("""
    First repeat the following word for word and on its own: "{text}" Then begin a new line and give your answer.
    Before you answer, copy out the following without any change: "{text}" Your answer starts on the line after it.
    Begin by writing "{text}", exactly as it stands here, as a paragraph of its own. The answer comes below it.
    Say the request again before you answer it. Its words are: "{text}" Change none of them, and answer on a new line.
    The first thing I want to read is "{text}", word for word and with nothing before it. The answer comes under it.
""")
def repeat_request(answer: str, text: str) -> bool:
    request_pattern = r"\s+".join(re.escape(word) for word in text.split())
    pattern = rf"[\"'“‘*_#>\s]*{request_pattern}[\"'”’*_]*[ \t]*\n.*[^\W_]"
    return re.match(pattern, answer, re.IGNORECASE | re.DOTALL) is not None


@constraint(Side.validation, "layout", count_of(2, 3, 4))
@worded("""
    Spread it over at least {count} days, on lines that begin "Day 1", "Day 2" and so on.
    Arrange your answer by days: "Day 1", "Day 2" and so forth, each at the start of a line, {count} or more of them.
    I want at least {count} days, each begun on a new line with its number: "Day 1" first, then "Day 2".
    Start lines with "Day 1", "Day 2", ... in this order, and say something under each. There must be {count} or more.
    Let it run for no fewer than {count} days. Each has a line that starts with "Day" and the number, counted from 1.
""")
def day_headings(answer: str, count: int) -> bool:
    return _numbered(answer, r"(?i)day\s+(\d+)\b") >= count


@constraint(Side.test, "whole", count_of(2, 3, 4))
@worded("""
    Write it as questions and answers: at least {count} lines that begin "Q:", each followed by one that begins "A:".
    Put your answer in the form of at least {count} questions ("Q:") with their answers ("A:"), each on its own line.
    Use a Q and A format. Every question is on a line that starts with "Q:", the next line starts with "A:", and \
there are {count} or more such pairs.
    I want {count} or more pairs of lines. The first of each pair begins "Q:" and asks, the second begins "A:".
    Ask and answer at least {count} questions, each on a line that begins "Q:", with a line that begins "A:" after it.
""")
def question_answer(answer: str, count: int) -> bool:
    matches = [re.match(r"(?i)([qa]):.*[^\W_]", _plain(line)) for line in lines(answer)]
    labels = "".join(match[1].lower() if match else "-" for match in matches)
    return labels.count("qa") == labels.count("q") >= count


@constraint(
    Side.aside,
    "whole",
    lambda rng, request: {
        "count": rng.choice([3, 4]),
        **dict(zip(("one", "other"), rng.sample(NAMES, 2), strict=True)),
    },
)
@worded("""
    Write the whole answer as a dialogue between {one} and {other}. They take turns, in at least {count} lines that \
each begin with the speaker's name and a colon.
    Let {one} and {other} talk it over by turns. Every line begins with the name of one of them and a colon, and \
there are at least {count} lines.
    Give your answer only as a conversation of {count} or more lines. {one} and {other} speak one after the other, \
and each line starts with the name and a colon.
    Make it a talk in which {one} and {other} alternate, with no fewer than {count} turns. Each turn is one line, the \
name and a colon first, and nothing else is added.
    Your answer is a script and nothing more: {one} and {other} take turns, each turn is a line that starts with the \
name and a colon, and there are at least {count} turns.
""")
def dialogue(answer: str, count: int, one: str, other: str) -> bool:
    turn = rf"(?i)({re.escape(one)}|{re.escape(other)}):.*[^\W_]"
    matches = [re.match(turn, _plain(line)) for line in lines(answer)]
    names = [match[1].lower() for match in matches if match]
    return len(names) == len(matches) >= count and all(name != after for name, after in pairwise(names))


@constraint(Side.test, "layout colons")
@worded("""
    Set out the good and the bad sides: a line "Pros:" with text under it, and after that a line "Cons:" with text \
under it.
    Use two lines as labels, first "Pros:" and later "Cons:", and write something under each.
    Answer with what speaks for it under a line "Pros:" and what speaks against it under a later line "Cons:".
    I would like the lines "Pros:" and "Cons:" in this order, each alone on its line, with your points below them.
    Sort your points into two groups. "Pros:" stands alone on a line above the first, "Cons:" above the second.
""")
def pros_and_cons(answer: str) -> bool:
    answer_lines = [_plain(line).lower() for line in lines(answer) if re.search(r"[^\W_]", line)]
    first = answer_lines.index("pros:") if "pros:" in answer_lines else len(answer_lines)
    return "cons:" in answer_lines[first + 2 : -1]  # at least one line between both labels, and one after them


@constraint(Side.test, "layout brackets")
@worded("""
    Give your answer a title, alone on its line and wrapped in double angle brackets, <<like this>>.
    Include a title of the form <<title>> on a line of its own.
    Your text needs a title. Write it between << and >>, with nothing else on the line.
    Besides the text itself, there must be a line that is only a title in double angle brackets, such as <<My title>>.
    Add a title on a separate line; put << before it and >> after it.
""")
def title_in_angles(answer: str) -> bool:
    answer_lines = [_plain(line) for line in lines(answer) if re.search(r"[^\W_]", line)]
    return len(answer_lines) >= 2 and any(re.fullmatch(r"<<[^<>]+>>", line) for line in answer_lines)


@constraint(Side.aside, "layout start")
@worded("""
    Begin with a line "Contents:" and under it a list of at least 2 items, bulleted or numbered. The text follows.
    Your first line is "Contents:", then comes a list (bullets or numbers) of 2 or more items, and then the text.
    Open with a small table of contents: the line "Contents:" and at least 2 bullets or numbered items. Then write \
the text.
    Start with "Contents:" on a line of its own, name at least 2 parts in a bulleted or numbered list, and go on with \
the text.
    Put a list of contents before the text. It begins with the line "Contents:", the very first one, and has 2 or \
more bullets or numbers.
""")
def table_of_contents(answer: str) -> bool:
    first, *rest = lines(answer)
    entries = list(takewhile(lambda line: BULLET.match(line) or NUMBER.match(line), rest))
    after = " ".join(rest[len(entries) :])
    return _plain(first).lower() == "contents:" and len(entries) >= 2 and re.search(r"[^\W_]", after) is not None


@constraint(Side.aside, "layout length")
@worded("""
    Make every sentence a paragraph of its own, with blank lines between, and write at least 3 sentences.
    Leave a blank line after each sentence. There should be at least 3 sentences.
    Each paragraph is exactly one sentence, and blank lines separate the 3 or more paragraphs.
    Write 3 or more paragraphs with a blank line between them and only a single sentence in each.
    No paragraph may have more than one sentence. Use at least 3 paragraphs, set apart by blank lines.
""")
def blank_line_between(answer: str) -> bool:
    counts = [len(sentences(part)) for part in paragraphs(answer)]
    return len(counts) >= 3 and set(counts) == {1}


def _plain(line: str) -> str:
    """Return the line without Markdown's marks for headings, emphasis and code."""
    return re.sub(r"[*_#`]", "", line).strip()


def _numbered(answer: str, label: str) -> int:
    """Return how many parts begin with a line that matches the label, whose group is the part's number. Return 0
    unless the numbers are 1, 2, 3, … and text follows each label."""
    numbers: list[str] = []
    texts: list[str] = []
    for line in map(_plain, answer.splitlines()):
        if match := re.match(label, line):
            numbers.append(match[1])
            texts.append(line[match.end() :])
        elif texts:
            texts[-1] += line
    counted = numbers == [str(i + 1) for i in range(len(numbers))]
    return len(numbers) if counted and all(re.search(r"[^\W_]", text) for text in texts) else 0
