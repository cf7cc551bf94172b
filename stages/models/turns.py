"""Find what a model must write of each turn, by differences of renderings: what stands after the prompt, as it is
generated, up to the token that ends the turn. Marks in a template are not needed, which few templates have.

Some templates change earlier turns once another follows, as those that drop old thoughts do. Where a rendering does not
begin with an earlier one, a conversation becomes several stretches, and each answer stands in one of them."""

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from stages.models.rendering import ContractError, encode, token_ids
from stages.store.records import Message
from stages.store.text_units import count_shared_prefix
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
        prompt, whole = render_answer(render, messages[:turn], message)
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


def render_answer(render: Render, before: Sequence[Message], answer: Message) -> tuple[str, str]:
    """Return the prompt of an answer, and the conversation that begins with it and ends with the answer.
    Raise ContractError if the template writes the answer in another way than the prompt begins it."""
    whole = render([*before, answer])
    content = answer["content"]
    prompt = render(before, to_answer=True)
    if open_thought(prompt):
        whole = continue_thought(prompt, whole, content.strip())
    if not whole.startswith(prompt):
        whole = behind_header(render, before, prompt, whole)
    fault = thought_fault(prompt, whole.removeprefix(prompt), content)
    if fault:
        raise ContractError(fault)
    if not whole.startswith(prompt):
        begun = prompt[count_shared_prefix(prompt, whole) :]
        raise ContractError(
            f"the template begins an answer with {begun!r}, and writes this one without"
        )
    return prompt, whole


def behind_header(render: Render, before: Sequence[Message], prompt: str, whole: str) -> str:
    """Return a conversation with its last answer behind the prompt as it is generated. The template may change turns
    `before` once the answer stands there: gpt-oss' drops the thought of a call. The answer stands behind the last header
    that it shares with another answer; where there is none, `whole` is returned as it is."""
    header = prompt.removeprefix(render(before))
    other = render([*before, {"role": "assistant", "content": OTHER}])
    place = whole.rfind(header, 0, count_shared_prefix(whole, other))
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
    names = list[str]()
    if tools:
        content, calls = split_calls(content)
        names += [call["name"] for call in calls]
    spoken = answer_behind(content).strip()
    return [part for part in (spoken, *names) if part] or [""]


def left_out(texts: Sequence[Text], messages: Sequence[Message], tools: bool) -> str:
    """Return the first part of a conversation that the template leaves out, thoughts apart; '' if there is none.
    `tools`: it takes tools and calls as fields of their own."""
    whole = texts[-1].text
    for message in messages[: texts[-1].answers[-1].turn]:
        content = message["content"]
        if message["role"] == "assistant":
            continue
        if tools:
            content = without_tools(content)
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
    begun = count_shared_prefix(prompt, whole)
    begins_twice = whole[begun:].lstrip().startswith(tuple(MARKS))
    if thinking is None or (whole.startswith(prompt) and not begins_twice):
        return whole
    behind_thought = max(begun, whole.find(thinking.thought, begun) + len(thinking.thought))
    place = whole.find(thinking.answer, behind_thought)
    if place < 0:
        return whole
    return prompt + thinking.behind_mark + whole[place + len(thinking.answer) :]


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
    ends = list[int]()
    for stop in stops:
        found = text.find(stop, start)
        if found >= 0:
            ends.append(found + len(stop))
    return min(ends, default=len(text.rstrip()))


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    stop_ids: Sequence[int],
    added: Collection[int],
    calls: Collection[int] = (),
) -> Iterator[Stretch]:
    """Yield the tokens of each stretch. Where an answer would share a token with its prompt, or change the prompt's
    tokens, both are tokenised apart, as they are when the answer is sampled. `added`: the tokenizer's added tokens;
    `calls`: the turns that end with a mark of the template in place of a stop.
    Raise ContractError if an answer alone has another text, or no end of turn."""
    for each in texts:
        ids, offsets = encode(tokenizer, each.text)
        answers = list[Span]()
        for turn, start, end in each.answers:
            place = place_of_answer(tokenizer, each.text[:start], ids, offsets, added)
            if place is None:
                break
            answers.append(Span(turn, place, bisect_left(offsets, (end,))))
        stretch = Stretch(ids, answers)
        if len(answers) < len(each.answers):
            stretch = tokenize_apart(tokenizer, each)
            # a tokenizer may put a space before each text, as SentencePiece's do
            if tokenizer.decode(stretch.ids) != tokenizer.decode(ids):
                stretch = tokenize_apart(tokenizer, each, in_place=True)
            if tokenizer.decode(stretch.ids) != tokenizer.decode(ids):
                raise ContractError(border_message(tokenizer, each, ids, offsets))
        yield with_stop(stretch, stop_ids, calls)


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
    last = place - 1
    while last >= 0 and ids[last] not in added:
        last -= 1
    if last >= 0 and offsets[place - 1][1] <= len(prompt):
        behind = token_ids(tokenizer, prompt[offsets[last][1] :])
        if behind == ids[last + 1 : place]:
            return place
    prompt_ids = token_ids(tokenizer, prompt)
    if ids[: len(prompt_ids)] != prompt_ids:
        return None
    return len(prompt_ids)


def tokenize_apart(
    tokenizer: PreTrainedTokenizerBase, text: Text, in_place: bool = False
) -> Stretch:
    """Return the tokens of a stretch whose prompts and answers are tokenised one by one. `in_place`: each part behind
    the first as it stands behind another text, not as a text of its own."""
    ids = list[int]()
    answers = list[Span]()
    done = 0
    for turn, start, end in text.answers:
        ids += ids_of_part(tokenizer, text.text, done, start, in_place)
        first = len(ids)
        ids += ids_of_part(tokenizer, text.text, start, end, in_place)
        answers.append(Span(turn, first, len(ids)))
        done = end
    return Stretch(ids, answers)


def ids_of_part(
    tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int, in_place: bool
) -> list[int]:
    """Return the token ids of a part of a text, on its own or, `in_place`, behind what stands before it. For this the
    token that ends what stands before is put before the part, or a line feed, which joins with few."""
    part_ids = token_ids(tokenizer, text[start:end])
    if not (in_place and start):
        return part_ids
    anchor = "\n"
    for token in map(str, tokenizer.added_tokens_decoder.values()):
        if text.endswith(token, 0, start):
            anchor = token
    anchor_ids = token_ids(tokenizer, anchor)
    ids = token_ids(tokenizer, anchor + text[start:end])
    if ids[: len(anchor_ids)] != anchor_ids:
        return part_ids
    return ids[len(anchor_ids) :]


def border_message(
    tokenizer: PreTrainedTokenizerBase, text: Text, ids: list[int], offsets: list[tuple[int, int]]
) -> str:
    """Return the error for an answer that cannot be tokenised apart from its prompt, naming the token at the border."""
    start = text.answers[0].start
    place = max(0, bisect_left(offsets, (start, 0)) - 1)
    token = tokenizer.decode(ids[place : place + 1])
    return (
        f"the tokens of the answer {text.text[start:][:40]!r} change with the end of its prompt, at the token {token!r}. "
        "Type template=chatml, or another template that ends prompts with a special token"
    )


def with_stop(stretch: Stretch, stop_ids: Sequence[int], calls: Collection[int]) -> Stretch:
    """Return a stretch each of whose answers ends with a stop, except `calls`. In a template that writes none, as GLM's,
    the token that begins the next turn is one. Raise ContractError if an answer ends with another token."""
    answers = list[Span]()
    for turn, start, end in stretch.answers:
        if turn in calls:
            answers.append(Span(turn, start, end))
            continue
        if stretch.ids[end - 1] not in stop_ids:
            end += 1
        if end > len(stretch.ids) or stretch.ids[end - 1] not in stop_ids:
            raise ContractError("no end of turn follows an answer")
        answers.append(Span(turn, start, end))
    return Stretch(stretch.ids, answers)
