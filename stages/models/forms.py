"""Find the form in which a chat template takes conversations: it is tried on short ones, with system turns, thoughts
and tools."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.models.rendering import GOLDEN, ContractError, Form, render, token_ids
from stages.models.turns import answer_parts, answers_of, left_out, stretches_of_text
from stages.store.records import Message
from stages.store.thoughts import split_thought
from stages.store.tool_calls import BEGIN, END, TOOLS

THOUGHT = "Sky and sea."
DESCRIPTION = "Count an item."
NAME = "stock"
ITEM = "tea"
RESULT = "417 left"
THINKING = f"<think>\n{THOUGHT}\n</think>\n\n"
TOOL = f"""{{"type": "function", "function": {{"name": "{NAME}", "description": "{DESCRIPTION}", "parameters": {{"type":
 "object", "properties": {{"item": {{"type": "string", "description": "Its name."}}}}, "required": ["item"]}}}}}}"""
SYSTEM: Message = {"role": "system", "content": TOOLS.format(TOOL.replace("\n", ""))}
MARK_AT_END = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])$")
CALL = f'{BEGIN}\n{{"name": "{NAME}", "arguments": {{"item": "{ITEM}"}}}}\n{END}'


def golden_answers(thinks: bool, merge: bool) -> list[list[Message]]:
    """Return the conversations whose answers a template must be able to train: one with a thought, or all others;
    without `merge` it may have no system turns."""
    conversations = GOLDEN
    if thinks:
        conversations = [[*GOLDEN[1][:2], {"role": "assistant", "content": f"{THINKING}Blue."}]]
    if not merge:
        conversations = [turns[-2:] for turns in conversations]
    return conversations


def golden_call(thinks: bool) -> list[Message]:
    """Return a conversation with a tool, a call of it, and an answer from its result."""
    thinking = THINKING * thinks
    return [
        SYSTEM,
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": f"{thinking}{CALL}"},
        {"role": "tool", "content": RESULT},
        {"role": "assistant", "content": f"{thinking}Many."},
    ]


def forms(thinks: bool, merge: bool) -> list[Form]:
    """Return the forms that are tried, in order. `merge`: also those that lead the user's turn with the system's."""
    tried = [Form()]
    if merge:
        tried.append(Form(leads=True))
    tried += [replace(form, parts=True) for form in tried]
    if thinks:
        tried = [replace(form, splits=True) for form in tried] + tried
    return tried


def form_to_train(tokenizer: PreTrainedTokenizerBase, thinks: bool, merge: bool) -> Form:
    """Return the first form in which the tokenizer's template can train answers.
    Raise ContractError with the first reason if there is none."""
    conversations = golden_answers(thinks, merge)
    reasons = list[str]()
    for form in forms(thinks, merge):
        misfits = [misfit(tokenizer, form, conversation) for conversation in conversations]
        if not any(misfits):
            fits = partial(trains_calls, tokenizer, golden_call(thinks))
            return with_tools(tokenizer, form, fits, merge)
        reasons += filter(None, misfits)
    raise ContractError(reasons[0])


def trains_calls(
    tokenizer: PreTrainedTokenizerBase, episode: Sequence[Message], form: Form
) -> bool:
    return not misfit(tokenizer, form, episode)


def misfit(tokenizer: PreTrainedTokenizerBase, form: Form, conversation: Sequence[Message]) -> str:
    """Return why the answers of a conversation cannot be trained in this form, each behind its thought; '' if they can."""
    try:
        texts = stretches_of_text(partial(render, tokenizer, form=form), conversation, ())
    except ContractError as error:
        return str(error)
    except UserError as error:
        roles = " and ".join(dict.fromkeys(message["role"] for message in conversation))
        return f"the template cannot render {roles}: {error}"
    lost = left_out(texts, conversation, form.tools)
    if lost:
        return f"the template leaves out {lost!r}"
    for text, (turn, start, end) in answers_of(texts):
        content = conversation[turn]["content"]
        written = text[start:end]
        thinking = split_thought(content)
        behind = answer_parts(content, form.tools)[0]
        if thinking and not 0 <= written.find(thinking.thought) < written.find(behind):
            return f"the template does not write {thinking.thought!r} before {behind!r}"
    return ""


def with_tools(
    tokenizer: PreTrainedTokenizerBase, form: Form, fits: Callable[[Form], bool], merge: bool
) -> Form:
    """Return a form with tools, their calls and results: as fields of their own if the template takes these, else as
    text in the turns of their own roles or, with `merge`, of the user."""
    tried = replace(form, tools=True)
    if not shows_tools(tokenizer, tried):
        if not merge or fits(form):
            return form
        tried = replace(form, results=True)
    return tried if fits(tried) else form


def shows_tools(tokenizer: PreTrainedTokenizerBase, form: Form) -> bool:
    """Return whether a prompt in this form has tool, call and result."""
    try:
        text = render(tokenizer, golden_call(thinks=False)[:-1], form, to_answer=True)
    except UserError:
        return False
    return all(part in text for part in (DESCRIPTION, NAME, ITEM, RESULT))


def form_of_prompts(tokenizer: PreTrainedTokenizerBase, merge: bool = True) -> Form:
    """Return the first form in which the tokenizer's template renders prompts, of a model that is not trained here."""
    tried = [form for form in forms(False, merge) if renders_prompts(tokenizer, form)]
    form = tried[0] if tried else Form()
    return with_tools(tokenizer, form, partial(shows_tools, tokenizer), merge)


def renders_prompts(tokenizer: PreTrainedTokenizerBase, form: Form) -> bool:
    """Return whether the tokenizer's template renders a prompt with a system turn in this form."""
    prompt = GOLDEN[1][:2]
    try:
        text = render(tokenizer, prompt, form, to_answer=True)
    except UserError:
        return False
    return all(message["content"].strip() in text for message in prompt)


def end_of_call(
    tokenizer: PreTrainedTokenizerBase, form: Form, stops: Collection[int]
) -> list[int]:
    """Return the token that ends a turn which calls a tool, as a list: the last one of the turn, or in a template that
    writes none the first of the result, if it is one of `stops`; any other added token at the turn's end. Empty if none
    is."""
    *called, result, _ = golden_call(thinks=False)
    call = token_ids(tokenizer, render(tokenizer, called, form).rstrip())
    answered = token_ids(tokenizer, render(tokenizer, [*called, result], form))
    last = call[-1]
    for token in (last, *answered[len(call) : len(call) + 1]):
        if token in stops:
            return [token]
    return [last] * (last in tokenizer.added_tokens_decoder)


def mark_after_call(tokenizer: PreTrainedTokenizerBase, form: Form) -> str:
    """Return the mark of several tokens behind a call, where the template writes the result, as Gemma 4's
    <|tool_response> in a vocabulary without this token; '' if a call ends otherwise."""
    *called, result, _ = golden_call(thinks=False)
    call = render(tokenizer, called, form).rstrip()
    mark = MARK_AT_END.search(call)
    is_answered_there = render(tokenizer, [*called, result], form).startswith(call)
    is_token = token_ids(tokenizer, call)[-1] in tokenizer.added_tokens_decoder
    if mark is None or is_token or not is_answered_there:
        return ""
    return mark[0]
