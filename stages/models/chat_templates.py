"""Choose a base model's chat template, and fix template, end of turn and padding as the contract of SFT.

The template is the tokenizer's own; for a base that has none, or when asked, one from `templates/` whose special tokens
the vocabulary has, or a file."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.blocks.models import Template, TemplateFile
from stages.config.errors import UserError
from stages.models.contract import Continuation, Contract
from stages.models.forms import end_of_call, form_of_prompts, form_to_train, golden_answers
from stages.models.rendering import (
    GOLDEN,
    ContractError,
    Form,
    adds_bos,
    end_after,
    render,
    token_ids,
    undated,
    with_arguments,
)
from stages.store.source_files import read_template

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
INSTEAD = "chatml"  # takes the place of another form that is the model's own
# The special tokens that each template needs in the vocabulary. A base without a template gets the first that fits.
TURN_TOKENS = {
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "llama3": {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    "gemma": {"<start_of_turn>", "<end_of_turn>"},
}
# Special tokens that mean nothing inside a text
UNUSED = re.compile("pad|unk|unused|reserved|extra_id|endoftext|end_of_text")
# A template that thinks unless told otherwise is told so: what its prompt then begins, no row without a thought goes on.
NO_THOUGHTS: list[dict[str, Any]] = [{}, {"enable_thinking": False}]


def establish_contract(
    tokenizer: PreTrainedTokenizerBase,
    cfg: Template,
    train: bool,
    rows: int,
    stops: Sequence[int] = (),
    thinks: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> Contract:
    """Fix template, end of turn and padding on a base model's tokenizer, whose model has `rows` embeddings. Without
    `train` the model had its SFT elsewhere. `stops`: its stop tokens until now, which stay then, and are needed where a
    template writes none; `thinks`: most answers that are to be trained have thoughts. `warn` is told of arguments that
    nobody typed.
    Raise ContractError if the answer cannot be told from its prompt, no token ends a turn, BOS is not rendered exactly
    once, or no token is free for padding."""
    template = undated(choose_template(tokenizer, cfg, train))
    tokenizer.chat_template = template
    form = fit_template(tokenizer, template, cfg, train, thinks, warn)
    text = render(tokenizer, GOLDEN[0], form)
    require_one_bos(tokenizer, text, cfg.kind)
    ends = end_after(tokenizer, text, GOLDEN[0][-1]["content"])
    text_end = end_of_text(tokenizer, ends, stops)
    if not (train and ends):  # GLM's template ends an answer with the beginning of the next turn
        ends += stops
    ends.append(tokenizer.eos_token_id)
    stop_ids = [i for i in dict.fromkeys(ends) if i is not None]
    if not stop_ids:
        raise ContractError(f"template={cfg.kind}: no special token ends the assistant's turn.")
    if form.tools:
        stop_ids += set(end_of_call(tokenizer, form, {*stop_ids, *stops})) - {*stop_ids}
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_ids[0])
    contract = Contract(tokenizer, stop_ids, form, cfg.special, text_end)
    choose_padding(contract, rows, cfg.resize)
    if train:
        for conversation in golden_answers(thinks, cfg.merges):
            contract.stretches(conversation)
    require_header(contract, cfg.kind)
    return contract


def end_of_text(
    tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], stops: Sequence[int]
) -> int | None:
    """Return the token that ends a running text: what the tokenizer puts behind every text, else EOS or another of the
    model's `stops`, if it does not end a turn; None if each of them does. `ends`: the tokens that end a turn."""
    behind = tokenizer("a").input_ids[-1]
    if behind in tokenizer.all_special_ids and behind != tokenizer.bos_token_id:
        return int(behind)
    for token in (tokenizer.eos_token_id, *stops):
        if token is not None and token not in ends:
            return int(token)
    return None


def require_one_bos(tokenizer: PreTrainedTokenizerBase, text: str, kind: str) -> None:
    """Raise ContractError if a rendered conversation begins with BOS twice, or if a template from a file leaves out the
    BOS that the tokenizer puts before every text."""
    bos = tokenizer.bos_token_id
    ids = token_ids(tokenizer, text)
    if bos is not None and ids[:2] == [bos, bos]:
        raise ContractError(f"template={kind}: BOS ({tokenizer.bos_token}) is rendered twice.")
    if kind == "file" and adds_bos(tokenizer) and ids[:1] != [bos]:
        problem = f"this tokenizer puts BOS ({tokenizer.bos_token}) before every text, and the template does not"
        raise ContractError(f"template=file: {problem}. Begin it with {{{{ bos_token }}}}.")


def fit_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    cfg: Template,
    train: bool,
    thinks: bool,
    warn: Callable[[str], object],
) -> Form:
    """Give the tokenizer its template with the arguments and in the form in which an answer can be told from its prompt.
    Raise ContractError with the first reason if there is none; a model that is not trained keeps the template as it is."""
    require_arguments(template, cfg.arguments)
    tried = [cfg.arguments]
    if not cfg.arguments and not thinks:
        tried = NO_THOUGHTS
    reasons = list[str]()
    for arguments in tried:
        tokenizer.chat_template = with_arguments(template, arguments)
        try:
            form = form_to_train(tokenizer, thinks, cfg.merges)
        except ContractError as reason:
            reasons.append(str(reason))
            continue
        if arguments and not cfg.arguments:
            warn(arguments_message(arguments))
        return form
    if not train:
        tokenizer.chat_template = with_arguments(template, cfg.arguments)
        return form_of_prompts(tokenizer, cfg.merges)
    way_out = f"One that fits: template={fitting_template(tokenizer)}"
    raise ContractError(f"template={cfg.kind}: {reasons[0]}. {way_out}.")


def replaced_message(contract: Contract, own: str | None, kind: str) -> str:
    """Return the sentence that says how a model's own template writes a prompt, and how the one that takes its place
    does; '' if it is kept."""
    tokenizer = contract.tokenizer
    question = GOLDEN[0][:1]
    ours = tokenizer.chat_template
    if not own or str(ours).endswith(undated(own)):
        return ""
    tokenizer.chat_template = undated(own)
    try:
        before = render(tokenizer, question, to_answer=True)
    except UserError as error:
        before = f"an error: {error}"
    finally:
        tokenizer.chat_template = ours
    after = contract.render(question, to_answer=True)
    return f"template={kind} takes the place of the model's own: {before!r} becomes {after!r}"


def require_arguments(template: str, arguments: Mapping[str, Any]) -> None:
    """Raise ContractError for an argument that a template does not read."""
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ContractError(f"sft.template.arguments: the template reads no {name!r}.")


def arguments_message(arguments: Mapping[str, Any]) -> str:
    """Return the sentence on arguments of a template that nobody typed."""
    typed = ", ".join(f"{name}: {str(value).lower()}" for name, value in arguments.items())
    reason = "without it the model's template thinks before every answer, and no answer here does"
    return f"sft.template.arguments={{{typed}}} is set: {reason}."


def require_header(contract: Contract, kind: str) -> None:
    """Raise ContractError if the template writes the header of an answer, and not where an answer is to begin."""
    question, answer = GOLDEN[0]
    prompt = contract.render([question], to_answer=True)
    whole = contract.render([question, answer])
    header = whole[len(prompt) : whole.rfind(answer["content"])]
    if contract.render([question]) == prompt and header.strip():
        raise ContractError(
            f"template={kind}: the template writes {header!r} before an answer, and not where an answer is to "
            "begin. Add it where add_generation_prompt is true."
        )


def choose_padding(contract: Contract, rows: int, resize: bool) -> None:
    """Choose a pad token that is neither BOS nor an end of turn: the tokenizer's, a special token that means nothing
    inside a text, a new one in a spare row of the embedding, which `resize` adds, or another special token that the
    template does not use. Raise ContractError if none is."""
    tokenizer = contract.tokenizer
    used = {*contract.stop_ids, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return
    for conversation in GOLDEN:
        with suppress(ContractError):  # a template need not have system turns
            used |= {*token_ids(tokenizer, contract.render(conversation))}
    added = sorted(tokenizer.added_tokens_decoder.items())
    special = [str(token) for i, token in added if token.special and i not in used]
    unused = [token for token in special if UNUSED.search(token)]
    padding = [token for token in unused if "pad" in token]
    has_room = resize or len(tokenizer) < rows
    if unused or (special and not has_room):
        tokenizer.pad_token = (padding or unused or special)[0]
    elif has_room:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        raise ContractError(
            f"no token is free for padding: all {rows} rows of the embedding are in use, and {tokenizer.eos_token} "
            "ends a turn. Set sft.template.resize=true, which adds a row for <|pad|>."
        )


def choose_template(tokenizer: PreTrainedTokenizerBase, cfg: Template, train: bool) -> str:
    """Return the Jinja source of the template that `template=` names."""
    kind = cfg.kind
    if kind in ("auto", "own"):
        if tokenizer.chat_template:
            return str(tokenizer.chat_template)
        if kind == "own":
            raise ContractError(
                "template=own: the tokenizer has no chat template. Use template=auto, or name one."
            )
        if not train:
            raise ContractError(
                "the tokenizer has no chat template, so the prompt format of the model's training is not known. "
                "Name it: template=chatml, template=plain, or template=file sft.template.path=…."
            )
        kind = fitting_template(tokenizer)
    if isinstance(cfg, TemplateFile):
        return read_template(Path(cfg.path))
    lacking = TURN_TOKENS.get(kind, set()) - set(tokenizer.get_vocab())
    if lacking:
        names = " and ".join(sorted(lacking))
        raise ContractError(f"template={kind}: the vocabulary lacks {names}. Use template=plain.")
    if kind not in TURN_TOKENS and tokenizer.eos_token is None:
        raise ContractError(
            f"template={kind}: the tokenizer has no EOS token that could end a turn."
        )
    return template_of(tokenizer, kind)


def fitting_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of the first template of `templates/` whose special tokens the vocabulary has."""
    vocabulary = set(tokenizer.get_vocab())
    for name, tokens in TURN_TOKENS.items():
        if tokens <= vocabulary:
            return name
    return "plain"


class OtherTemplate(Contract):
    """The contract of a model with another chat template, whose next marker ends the answer."""

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("<|")[0]


def in_form(contract: Contract, form: str) -> Contract:
    """Return the contract in the form `text` or in a template of `templates/`, with the model's own stop tokens. The
    markers of a template are plain text to a vocabulary without them."""
    tokenizer = contract.tokenizer
    if form == "text":
        return Continuation(tokenizer, contract.stop_ids)
    tokenizer.chat_template = template_of(tokenizer, other_form(tokenizer, form))
    return OtherTemplate(tokenizer, contract.stop_ids)


def other_form(tokenizer: PreTrainedTokenizerBase, form: str) -> str:
    """Return the form, or INSTEAD if it is the model's own."""
    if form != "text" and template_of(tokenizer, form) == tokenizer.chat_template:
        return INSTEAD
    return form


def template_of(tokenizer: PreTrainedTokenizerBase, kind: str) -> str:
    """Return a template of `templates/`, which writes BOS where the tokenizer adds it to a text."""
    template = (TEMPLATES / f"{kind}.jinja").read_text(encoding="utf-8")
    if adds_bos(tokenizer):
        return f"{{{{- bos_token -}}}}\n{template}"
    return template
