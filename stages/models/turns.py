"""Find what a model must write of each turn, by differences of renderings: what stands after the prompt, as it is
generated, up to the token that ends the turn. Marks in a template are not needed, which few templates have.

Some templates change earlier turns once another follows, as those that drop old thoughts do. Where a rendering does not
begin with an earlier one, a conversation becomes several stretches, and each answer stands in one of them."""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from stages.models.rendering import ContractError, encode, token_ids
from stages.store.records import Message
from stages.store.thoughts import (
    MARKS,
    answer_behind,
    open_thought,
    split_thought,
    thought_fault,
)
from stages.store.tool_calls import quoted, split_calls, without_tools

OTHER = "Something else."


class Render(Protocol):
    """Returns the text of a conversation; `to_answer`: up to where the assistant begins the next turn."""

    def __call__(self, messages: Sequence[Message], /, *, to_answer: bool = ...) -> str: ...


class Span(NamedTuple):
    """The answer of one turn of a conversation, in the characters of a text, or in tokens."""

    turn: int
    start: int
    end: int


@dataclass
class Text:
    """A stretch as text, up to its last answer."""

    text: str = ""
    answers: list[Span] = field(default_factory=list)

    def end_with(self, stop: str) -> None:
        """Let the last answer, which the template leaves open, end with a stop."""
        self.text += stop
        self.answers[-1] = self.answers[-1]._replace(end=len(self.text))


@dataclass
class Stretch:
    """The token ids of a conversation up to an answer, and the answers in them that the model must write."""

    ids: list[int]
    answers: list[Span]

    def trained(self, turns: Collection[int] | None = None) -> list[bool]:
        """Return True for each token of the answers of these turns; None: of all."""
        marks = [False] * len(self.ids)
        for turn, start, end in self.answers:
            if turns is None or turn in turns:
                marks[start:end] = [True] * (end - start)
        return marks


def stretches_of_text(
    render: Render, messages: Sequence[Message], stops: Collection[str]
) -> list[Text]:
    """Return the stretches of a conversation. `stops`: the tokens that end a turn.
    Raise ContractError if the template writes a turn in another way than the prompt of it begins, or a thought is empty
    or never ends."""
    stretches = [Text()]
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        whole = render(messages[: turn + 1])
        prompt = (
            render(messages[:turn], to_answer=True) if turn else header_of_document(whole, message)
        )
        if open_thought(prompt):
            whole = continue_thought(prompt, whole, message["content"].strip())
        if not whole.startswith(prompt):
            whole = behind_header(render, messages[:turn], prompt, whole)
        if fault := thought_fault(prompt, whole.removeprefix(prompt), message["content"]):
            raise ContractError(fault)
        if not whole.startswith(prompt):
            begun = prompt[shared_length(prompt, whole) :]
            raise ContractError(
                f"the template begins an answer with {begun!r}, and writes this one without"
            )
        if turn == len(messages) - 1:  # those before stay as they stand in the next prompt
            whole = with_leading_space(whole, len(prompt), message["content"])
        end = end_of_answer(whole, len(prompt), stops)
        if not prompt.startswith(stretches[-1].text):
            stretches.append(Text())
        stretches[-1].text = whole[:end]
        stretches[-1].answers.append(Span(turn, len(prompt), end))
    if not stretches[-1].answers:
        raise ContractError("no token is trained: the conversation has no assistant turn")
    return stretches


def header_of_document(text: str, message: Message) -> str:
    """Return what stands before a text that answers no prompt."""
    return text[: max(0, text.find(message["content"].strip()))]


def behind_header(render: Render, before: Sequence[Message], prompt: str, whole: str) -> str:
    """Return a conversation with its last answer behind the prompt as it is generated. The template may change turns
    `before` once the answer stands there: gpt-oss' drops the thought of a call. The answer stands behind the last header
    that it shares with another answer; where there is none, `whole` is returned as it is."""
    header = prompt.removeprefix(render(before))
    other = render([*before, {"role": "assistant", "content": OTHER}])
    place = whole.rfind(header, 0, shared_length(whole, other))
    if not header or place < max(0, whole.rfind(before[-1]["content"].strip())):
        return whole
    return prompt + whole[place + len(header) :]


def answers_of(texts: Sequence[Text]) -> Iterator[tuple[str, Span]]:
    """Yield each answer of a conversation, with its turn and its stretch's text."""
    for text in texts:
        for span in text.answers:
            yield text.text, span


def answer_parts(content: str, tools: bool) -> list[str]:
    """Return what an answer says behind its thought, and with `tools` the names of those that it calls."""
    spoken, calls = split_calls(content) if tools else (content, [])
    parts = [answer_behind(spoken).strip(), *(call["name"] for call in calls)]
    return [part for part in parts if part] or [""]


def left_out(texts: Sequence[Text], messages: Sequence[Message], tools: bool) -> str:
    """Return the first part of a conversation that the template leaves out, thoughts apart; '' if there is none.
    `tools`: it takes tools and calls as fields of their own."""
    whole, last = texts[-1].text, texts[-1].answers[-1].turn
    given = [message["content"] for message in messages[:last] if message["role"] != "assistant"]
    for content in map(without_tools, given) if tools else given:
        if content.strip() not in whole and quoted(content) not in whole:
            return content
    for text, (turn, start, end) in answers_of(texts):
        for part in answer_parts(messages[turn]["content"], tools):
            if part not in text[start:end]:
                return part
    return ""


def continue_thought(prompt: str, whole: str, content: str) -> str:
    """Return a conversation whose prompt opens a thought, with the thought of the last turn behind it: the template may
    drop that, or write its opening mark again."""
    thinking = split_thought(content)
    begun = shared_length(prompt, whole)
    if thinking is None or (
        whole.startswith(prompt) and not whole[begun:].lstrip().startswith(tuple(MARKS))
    ):
        return whole
    behind_thought = max(begun, whole.find(thinking.thought, begun) + len(thinking.thought))
    if (place := whole.find(thinking.answer, behind_thought)) < 0:
        return whole
    return prompt + thinking.behind_mark + whole[place + len(thinking.answer) :]


def shared_length(text: str, other: str) -> int:
    """Return the number of characters with which two texts begin alike."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    return sum(1 for _ in alike)


def with_leading_space(text: str, start: int, content: str) -> str:
    """Return a conversation whose last answer begins with the white space that its content has, which templates trim:
    the first line of code has an indentation."""
    space = content[: len(content) - len(content.lstrip())]
    place = text.find(content.strip(), start)
    if not space or place < 0 or text[start:place].strip() or text[start:place].endswith(space):
        return text
    return text[:place] + space + text[place:]


def end_of_answer(text: str, start: int, stops: Collection[str]) -> int:
    """Return where an answer ends: behind its first stop, which no content spells, or without one at the end."""
    ends = [found + len(stop) for stop in stops if (found := text.find(stop, start)) >= 0]
    return min(ends, default=len(text.rstrip()))


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    stop_ids: Sequence[int],
    added: Collection[int],
) -> Iterator[Stretch]:
    """Yield the tokens of each stretch. Where an answer would share a token with its prompt, or change the prompt's
    tokens, both are tokenised apart, as they are when the answer is sampled. `added`: the tokenizer's added tokens.
    Raise ContractError if an answer alone has another text, or no end of turn."""
    for each in texts:
        ids, offsets = encode(tokenizer, each.text)
        places = [
            place_of_answer(tokenizer, each.text[: answer.start], ids, offsets, added)
            for answer in each.answers
        ]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            stretch = tokenize_apart(tokenizer, each)
            if tokenizer.decode(stretch.ids) != tokenizer.decode(ids):
                raise ContractError("the tokens of an answer change with the end of its prompt")
        else:
            starts = [start for start, _ in offsets]
            ends = [bisect_left(starts, answer.end) for answer in each.answers]
            turns = [answer.turn for answer in each.answers]
            stretch = Stretch(ids, [*map(Span, turns, known, ends)])
        yield with_stop(stretch, stop_ids)


def place_of_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    added: Collection[int],
) -> int | None:
    """Return how many of a conversation's tokens are the prompt's; None if the prompt alone has others. Only those
    behind the prompt's last added token can differ, as tokenizers split the text there."""
    place = bisect_left(offsets, (len(prompt), 0))
    last = next((i for i in range(place - 1, -1, -1) if ids[i] in added), None)
    if last is not None and offsets[place - 1][1] <= len(prompt):
        behind = token_ids(tokenizer, prompt[offsets[last][1] :])
        if behind == ids[last + 1 : place]:
            return place
    prompt_ids = token_ids(tokenizer, prompt)
    return len(prompt_ids) if ids[: len(prompt_ids)] == prompt_ids else None


def tokenize_apart(tokenizer: PreTrainedTokenizerBase, text: Text) -> Stretch:
    ids, answers, done = list[int](), list[Span](), 0
    for turn, start, end in text.answers:
        ids += token_ids(tokenizer, text.text[done:start])
        answer = token_ids(tokenizer, text.text[start:end])
        answers.append(Span(turn, len(ids), len(ids) + len(answer)))
        ids, done = ids + answer, end
    return Stretch(ids, answers)


def with_stop(stretch: Stretch, stop_ids: Sequence[int]) -> Stretch:
    """Return a stretch each of whose answers ends with a stop. In a template that writes none, as GLM's, the token
    that begins the next turn is one. Raise ContractError if an answer ends with another token."""
    answers = list[Span]()
    for turn, start, end in stretch.answers:
        behind = end if stretch.ids[end - 1] in stop_ids else end + 1
        if behind > len(stretch.ids) or stretch.ids[behind - 1] not in stop_ids:
            raise ContractError("no end of turn follows an answer")
        answers.append(Span(turn, start, behind))
    return Stretch(stretch.ids, answers)
