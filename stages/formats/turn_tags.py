"""Split a text at the tags before the turns of a conversation, as any chat template writes them.

No template is known by its name. A tag (<|x|>, [x], <x>) begins a turn if the word of a role stands in it (<|user|>) or at
once behind it (<|start|>user). Tags of markup look the same. So a tag that is no token of a vocabulary by its looks counts
only if it begins the text, user and assistant alternate, and each says something."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from stages.config.installation import read_beside
from stages.store.thoughts import MARKS as THOUGHTS

WORDS = read_beside(__file__)
ROLE_OF = {word: role for role, words in WORDS["roles"].items() for word in words.split()}
ROLE_OF_TEXT = {word: role for role, words in WORDS["texts"].items() for word in words.split()}
AMBIGUOUS, FOREIGN, FRAMES, BORDERS, COMPANIONS = (
    {*WORDS[key].split()} for key in ("ambiguous", "foreign", "frames", "borders", "companions")
)

TAG = re.compile(
    r"<{1,2}[^<>\s]{1,48}>{1,2}"
    r"|\[[^\[\]\s]{1,48}\](?!\()"  # a link's text is no tag
    r"|[\[\]](?=[^\[\]\s]{0,8}~)[^\[\]\s]{1,8}[\[\]]"
    r"|(?:(?<=\n)|\A)\{\{\w{1,48}\}\}|\{\{[#~/][^{}\s]{1,48}\}\}"
    r"|[【〈《«][^【】〈〉《》«»\s]{1,20}[】〉》»]"
    r"|([@#$%^&=~+|:§!]{1,3})(?!\d)\w{1,20}\1"
)
LONGEST_TAG = 52
LAST_TAG = re.compile(rf"(?:{TAG.pattern})\Z")
TAG_BEHIND = re.compile(rf"\s*(?:{TAG.pattern})")
MARKUP = re.compile(r"</?[a-z0-9]+>")
# brackets that close nothing, as MiniMax has them: ]~b] and [e~[
TILDED = re.compile(r"\][^\[\]\s]*~[^\[\]\s]*[\[\]]|\[[^\[\]\s]*~[^\[\]\s]*\[")
XML_NAME = re.compile(r"</?\w+:")
PIPED = re.compile(rf"[<\[][|｜]|[|｜][>\]]|{TILDED.pattern}")
NUMBERED = re.compile(r"<\|?(?:reserved|extra|special|unused)\w*_?\d+\|?>", re.IGNORECASE)
CAPITALS = re.compile(r"\[/?[A-Z_]{3,}\]")
NAME_WORD = re.compile(r"[^\W\d_]+")
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
END_OF = re.compile(r"(?:end|eo)(?:of)?")
BORDER_OF = re.compile(r"(?:end|begin|start)of\w+")
ROLE_WORDS = "|".join(sorted(map(re.escape, ROLE_OF), key=len, reverse=True))
GLUED = re.compile(rf"({ROLE_WORDS})(?:{'|'.join(sorted(COMPANIONS))})")
# The word of a role behind a tag; `alone`: nothing but a line's end or a tag follows
HEADER = re.compile(
    rf"({ROLE_WORDS})(?:(?P<alone>(?=[ \t\r]*(?:\n|\Z)|[<\[\]]))|(?=(?P<colon>[:：])?)(?!\w)(?=[:：\s]))",
    re.IGNORECASE,
)
CHANNEL = re.compile(r"<\|channel\|>(\w+)")


@dataclass(frozen=True)
class Mark:
    """A tag with the word of a role, and where both stand in a text. `shape`: the tag without that word. `token`: the tag
    looks like a token of a vocabulary. `behind`: the word stands behind the tag. `closes`: it ends what such a tag
    began."""

    start: int
    end: int
    tag: str
    word: str
    role: str
    shape: str
    token: bool
    behind: bool = False
    closes: bool = False


@lru_cache(maxsize=4096)
def name_words(tag: str) -> tuple[str, ...]:
    """Return the words in a tag: `<|START_OF_TURN_TOKEN|>` has start, of, turn, token."""
    return tuple(NAME_WORD.findall(CAMEL.sub(" ", tag).lower()))


def looks_like_token(tag: str) -> bool:
    return bool(PIPED.search(tag) or NUMBERED.fullmatch(tag) or tag.startswith("<<"))


@lru_cache(maxsize=4096)
def is_border(tag: str) -> bool:
    """Return whether a tag stands at the ends of texts and turns, as <|endoftext|>, </s> and <eoh> do."""
    if tag in ("<s>", "</s>") or TILDED.fullmatch(tag) or NUMBERED.fullmatch(tag):
        return True
    words = name_words(tag)
    is_piped = PIPED.search(tag) is not None
    if not BORDERS.isdisjoint(words) or any(map(BORDER_OF.fullmatch, words)):
        return is_piped or tag.startswith("<") or tag.isupper() or tag == "[gMASK]"
    if is_piped:
        return not {"end", "begin", "start", "turn"}.isdisjoint(words)
    return words[:2] in (("end", "of"), ("begin", "of"), ("start", "of"))


@lru_cache(maxsize=4096)
def role_in_tag(tag: str) -> tuple[str, str, bool]:
    """Return the word of a role in a tag, the role, and whether the tag ends what such a tag began; '' without one."""
    words = [*name_words(tag)]
    closes = tag.lstrip("<[{|｜~#").startswith("/") or words[-1:] == ["end"]
    if words and END_OF.match(words[0]):
        closes = True
        words[0] = END_OF.sub("", words[0], count=1)
    glued = [GLUED.fullmatch(word) for word in words]
    words = [match[1] if match else word for match, word in zip(glued, words, strict=True)]
    roles = {ROLE_OF[word]: word for word in words if word in ROLE_OF}
    if not roles and (looks_like_token(tag) or CAPITALS.fullmatch(tag)):
        roles = {ROLE_OF_TEXT[word]: word for word in words if word in ROLE_OF_TEXT}
    if len(roles) != 1 or not FOREIGN.isdisjoint(words):
        return "", "", False
    [(role, word)] = roles.items()
    if XML_NAME.match(tag) or (MARKUP.fullmatch(tag) and word in AMBIGUOUS):
        return "", "", False
    return word, role, closes


def marks_in(text: str) -> Iterator[Mark]:
    """Yield the tags with a role in a text, in order."""
    for match in TAG.finditer(text):
        tag = match[0]
        word, role, closes = role_in_tag(tag)
        shape = tag.lower().replace("/", "")
        if word:
            shape = shape.replace(word, "\0")
        header = None if closes else header_behind(text, match, word)
        if header:
            is_closed = text.startswith("</", header.end())
            is_name = tag.startswith("<") and not MARKUP.fullmatch(tag) and not is_closed
            token = header["alone"] is not None and (looks_like_token(tag) or is_name)
            word = header[1].lower()
            yield Mark(
                match.start(), header.end(), tag, word, ROLE_OF[word], f"{shape}\0", token, True
            )
        elif role:
            token = looks_like_token(tag)
            yield Mark(match.start(), match.end(), tag, word, role, shape, token, closes=closes)


def header_behind(text: str, tag: re.Match[str], word: str) -> re.Match[str] | None:
    """Return the word of a role at once behind a tag, which may have that `word` in itself. Behind the end of a text only
    a word on a line of its own counts."""
    header = HEADER.match(text, tag.end())
    if header is None or word not in ("", header[1].lower()):
        return None
    if header["alone"] is None:
        may_follow = header["colon"] or looks_like_token(tag[0])
        if is_border(tag[0]) or not may_follow or word:
            return None
    return header


def tagged_turns(text: str) -> list[dict[str, Any]] | None:
    """Return the turns of a text that begins with the tag of one; None for any other text."""
    if not TAG.match(text.lstrip()):
        return None
    marks = with_answers([*marks_in(text)])
    family = choose_family(marks)
    if not family:
        return None
    certain = all(mark.token for mark in family)
    system = lead_of(text[: family[0].start], certain)
    if system is None:
        return None
    turns = list[dict[str, Any]]()
    if system:
        turns.append({"role": "system", "content": system})
    closers = [mark for mark in marks if mark.closes]
    ends = [mark.start for mark in family[1:]] + [len(text)]
    separator = header_end(text, family)
    for mark, end in zip(family, ends, strict=True):
        turn = read_turn(text, mark, end, separator, closers)
        if turn is None:
            return None
        turn["content"] = strip_borders(turn["content"])
        turns.append(turn)
    if len(turns) > 1 and turns[-1] == {"role": "user", "content": ""}:
        turns.pop()  # GLM's templates end an answer with the beginning of the next turn
    strip_shared(turns)
    if certain or alternate(turns):
        return turns
    return None


def with_answers(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks of a text. Where only requests have tags, as [INST] … [/INST], the end of one begins an answer."""
    if any(mark.role == "assistant" for mark in marks):
        return [*marks]
    answered = list[Mark]()
    for mark in marks:
        if mark.word in ROLE_OF_TEXT and mark.role == "user":
            mark = replace(mark, token=True)
            if mark.closes:
                mark = replace(mark, role="assistant", closes=False)
        answered.append(mark)
    return answered


def choose_family(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks of one template: those of the shape that the first user and an assistant share, or else all that
    look like tokens, with the system's before them. A single speaker has to have such a mark."""
    begins = [mark for mark in marks if not mark.closes]
    if not begins:
        return []
    users = [mark for mark in begins if mark.role == "user"]
    main = (users or begins)[0]
    family = [mark for mark in begins if mark.shape == main.shape]
    roles = {mark.role for mark in family}
    if not {"user", "assistant"} <= roles:
        family = [mark for mark in begins if mark.token] if main.token else []
    before = [
        mark for mark in begins if mark.role == "system" and family and mark.start < family[0].start
    ]
    return [*before, *family]


def lead_of(text: str, certain: bool) -> str | None:
    """Return the system message before the first mark, which only a tag begins; '' if there is none. None if the text is
    no beginning of a conversation. `certain`: no markup looks like the marks."""
    tags = [tag[0] for tag in TAG.finditer(text)]
    if not certain and not all(map(is_border, tags)):
        return None
    words = TAG.sub("", text).strip()
    if not words:
        return ""
    begins_text = bool(tags) and is_border(tags[0]) and text.lstrip().startswith(tags[0])
    return words if certain and begins_text else None


def header_end(text: str, family: Sequence[Mark]) -> str:
    """Return the tag that ends the header of each turn, as <|message|>: the first that stands at once behind a role; ''
    if there is none."""
    for mark in family:
        tag = TAG.match(text, mark.end) if mark.behind else None
        if tag:
            return tag[0]
    return ""


def read_turn(
    text: str, mark: Mark, end: int, separator: str, closers: Sequence[Mark]
) -> dict[str, Any] | None:
    """Return the turn between a mark and `end`; None if text follows the tag that closes it."""
    for closer in closers:
        if mark.end <= closer.start < end and closer.word == mark.word:
            if TAG.sub("", text[closer.end : end]).strip():
                return None
            end = closer.start
    content = text[mark.end : end]
    header, _, behind = content.partition(separator or "\0")
    channel = CHANNEL.fullmatch(header)
    if separator and content.startswith(separator):
        content = behind
    turn: dict[str, Any] = {"role": mark.role, "content": content}
    if channel and separator:
        turn |= {"content": behind, "channel": channel[1]}
    return turn


def last_tag(text: str) -> str:
    """Return the tag with which a text ends, white space apart; '' if it ends with none."""
    last = LAST_TAG.search(text.rstrip()[-LONGEST_TAG:])
    return last[0] if last else ""


def ends_answer(tag: str) -> bool:
    """Return whether nobody writes a tag at the end of an answer but a chat template: <|im_end|>, </s>."""
    begins = not {"begin", "start", "bos", "sop", "bom"}.isdisjoint(name_words(tag))
    is_written = PIPED.search(tag) or tag in ("</s>", "<eos>", "<end_of_turn>")
    return bool(is_written) and is_border(tag) and not begins and tag not in THOUGHTS.values()


def strip_borders(content: str) -> str:
    """Return the content of a turn without the tags that begin and end turns and texts."""
    content = content.strip()
    while True:
        last = last_tag(content)
        if not is_border(last) or last in THOUGHTS.values():
            break
        content = content.removesuffix(last).rstrip()
    while True:
        first = TAG.match(content)
        if first is None or not is_border(first[0]) or content.startswith(tuple(THOUGHTS)):
            break
        content = content.removeprefix(first[0]).lstrip()
    return content


def strip_shared(turns: Sequence[dict[str, Any]]) -> None:
    """Remove the colon with which all turns begin, and the tag with which all end, or all of a role: then it has to look
    like a token."""
    spoken = [turn for turn in turns if turn["content"]]
    if all(turn["content"].startswith((":", "：")) for turn in spoken):
        for turn in spoken:
            turn["content"] = turn["content"][1:].lstrip()
    end = shared_end(spoken)
    if len(spoken) > 1 and not end.startswith("</"):
        remove_end(spoken, end)
    for role in ("user", "assistant"):
        of_role = [turn for turn in spoken if turn["role"] == role]
        end = shared_end(of_role)
        if looks_like_token(end):
            remove_end(of_role, end)


def shared_end(turns: Sequence[dict[str, Any]]) -> str:
    """Return the tag with which all turns end; '' if they end with none, or with several."""
    ends = set[str]()
    for turn in turns:
        ends.add(last_tag(turn["content"]))
    return min(ends) if len(ends) == 1 else ""


def remove_end(turns: Sequence[dict[str, Any]], end: str) -> None:
    for turn in turns:
        turn["content"] = turn["content"].removesuffix(end).rstrip()


def alternate(turns: Sequence[dict[str, Any]]) -> bool:
    """Return whether a user who says something and an assistant alternate, after at most a system message."""
    spoken = [turn for turn in turns if turn["role"] != "tool"]
    if spoken and spoken[0]["role"] == "system":
        spoken = spoken[1:]
    if len(spoken) < 2 or spoken[0]["role"] != "user":
        return False
    if any(first["role"] == second["role"] for first, second in pairwise(spoken)):
        return False
    are_speakers = all(turn["role"] in ("user", "assistant") for turn in spoken)
    return are_speakers and all(turn["content"] for turn in turns)


def first_turn_tag(text: str) -> str | None:
    """Return the first tag in a text that only a chat template writes, and no markup; None without one."""
    if not TAG.search(text):
        return None
    first_of_role = dict[str, str]()
    for mark in with_answers([*marks_in(text)]):
        written = text[mark.start : mark.end]
        is_role_alone = name_words(mark.tag) == (mark.word,)
        if mark.token and PIPED.search(mark.tag) and (mark.behind or is_role_alone):
            return written
        if mark.token and not mark.closes:
            first_of_role.setdefault(mark.role, written)
    if {"user", "assistant"} <= first_of_role.keys():
        return first_of_role["user"]
    unknown = unknown_speakers(text)
    if unknown:
        return unknown[0]
    whole = text.strip()
    for tag in TAG.finditer(whole):
        is_frame = PIPED.search(tag[0]) and not FRAMES.isdisjoint(name_words(tag[0]))
        is_inside = tag.start() > 0 and tag.end() < len(whole)
        if is_frame or (NUMBERED.fullmatch(tag[0]) and is_inside):
            return tag[0]
    return None


def unknown_speakers(text: str) -> list[str]:
    """Return the tags that look like tokens and frame all of a text, if there are several: <|frage|>, <|antwort|>. Tags
    with a word in common are parts of one text, as <|fim_prefix|> and <|fim_suffix|>."""
    whole = strip_borders(text)
    tags = list[str]()
    for match in TAG.finditer(whole):
        is_speaker = PIPED.search(match[0]) and not is_border(match[0])
        if is_speaker and match[0] not in tags and not TAG_BEHIND.match(whole, match.end()):
            tags.append(match[0])
    words = [{*name_words(tag)} for tag in tags]
    are_several = len(tags) > 1 and whole.startswith(tags[0])
    return tags if are_several and not set.intersection(*words) else []


def unread_tag(content: str) -> str:
    """Return the first tag in a turn's content that looks like a token, is no mark of thoughts and ends no text; ''
    without one."""
    for tag in (match[0] for match in TAG.finditer(content)):
        is_thought = any(tag in mark for mark in (*THOUGHTS, *THOUGHTS.values()))
        if (
            looks_like_token(tag)
            and not tag.startswith("<<")
            and not is_border(tag)
            and not is_thought
        ):
            return str(tag)
    return ""
