"""Choose a base model's chat template, and fix template, end of turn and padding as the contract of SFT.

The template is the tokenizer's own, one from `templates/` whose special tokens the vocabulary has, or a file."""

import logging
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.config.blocks.models import Template
from stages.config.errors import UserError
from stages.models.contract import Continuation, Contract
from stages.models.rendering import (
    GOLDEN,
    ContractError,
    added_tokens_after,
    tokenize_conversations,
    undated,
)
from stages.store.source_files import read_template

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
INSTEAD = "chatml"  # takes the place of another form that is the model's own
# The special tokens that each template needs in the vocabulary. `template=auto` takes the first template that fits.
TURN_TOKENS = {
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "llama3": {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    "gemma": {"<start_of_turn>", "<end_of_turn>"},
}


def establish_contract(
    tokenizer: PreTrainedTokenizerBase,
    cfg: Template,
    train: bool,
    rows: int,
    stops: Sequence[int] = (),
) -> Contract:
    """Fix template, end of turn and padding on a base model's tokenizer, whose model has `rows` embeddings. Without
    `train` the model had its SFT elsewhere: the tokenizer's own template stays as it is, and so do its `stops`.
    Raise ContractError if the template does not mark the assistant's tokens, train the end of turn, or render BOS
    exactly once; if a prompt's tokens are not a prefix of its conversation's; if no token is free for padding."""
    # a slow import that sampling does not need
    from trl.chat_template_utils import has_generation_markers

    tokenizer.chat_template = undated(choose_template(tokenizer, cfg, train))
    marked = has_generation_markers(str(tokenizer.chat_template))
    try:
        [(ids, trained)] = tokenize_conversations(tokenizer, GOLDEN[1:])
    except UserError as error:
        reason = f"the template cannot render system, user and assistant: {error}"
        way_out = f"Mend the template, or choose another: template={fitting_template(tokenizer)}"
        raise ContractError(f"template={cfg.kind}: {reason}. {way_out}.") from error
    if marked:
        answers = [i for i, t in zip(ids, trained, strict=True) if t]
    elif train:
        raise ContractError(
            f"template={cfg.kind}: the template has no {{% generation %}} around assistant tokens."
        )
    else:
        answers = [
            i for i in ids if i in tokenizer.added_tokens_decoder or i == tokenizer.eos_token_id
        ]
    while answers and not tokenizer.decode(answers[-1:]).strip():
        answers.pop()  # the template may put white space after the end of turn
    if not answers:
        raise ContractError(f"template={cfg.kind}: no special token ends the assistant's turn.")
    end_of_turn = find_end_of_turn(tokenizer, ids, answers[-1])
    if end_of_turn not in (*tokenizer.added_tokens_decoder, tokenizer.eos_token_id):
        problem = f"the last trained token is {tokenizer.convert_ids_to_tokens(end_of_turn)!r}, not an end of turn"
        way_out = (
            "so the model would never learn to stop. Move the end of turn inside {% generation %}."
        )
        raise ContractError(f"template={cfg.kind}: {problem}, {way_out}")
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ContractError(f"template={cfg.kind}: BOS ({tokenizer.bos_token}) is rendered twice.")
    if cfg.kind == "file" and adds_bos(tokenizer) and ids[:1] != [bos]:
        problem = f"this tokenizer puts BOS ({tokenizer.bos_token}) before every text, and the template does not"
        raise ContractError(f"template=file: {problem}. Begin it with {{{{ bos_token }}}}.")
    ends = (end_of_turn, tokenizer.eos_token_id, *stops)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_of_turn)
    stop_ids = [i for i in dict.fromkeys(ends) if i is not None]
    choose_padding(tokenizer, stop_ids, rows, cfg.resize)
    contract = Contract(tokenizer, stop_ids, marked)
    contract.golden()
    question, (ids, trained) = GOLDEN[0][:1], contract.example(GOLDEN[0])
    silent, prompted = (
        tokenize_conversations(tokenizer, [question], begins)[0][0] for begins in (False, True)
    )
    header = tokenizer.decode(ids[len(prompted) : trained.index(True)])
    if silent == prompted and header.strip():
        problem = (
            f"the template writes {header!r} before an answer, and not where an answer is to begin"
        )
        raise ContractError(
            f"template={cfg.kind}: {problem}. Add it where add_generation_prompt is true."
        )
    return contract


def find_end_of_turn(tokenizer: PreTrainedTokenizerBase, ids: list[int], last: int) -> int:
    """Return the token that ends every answer in the ids of the golden conversation. It is the `last` special token,
    unless that occurs once and another one stands before it: Phi-3's template adds EOS to the whole conversation."""
    after_each = [
        i for i in added_tokens_after(tokenizer, ids, GOLDEN[-1][-1]["content"]) if ids.count(i) > 1
    ]
    return after_each[-1] if after_each and ids.count(last) == 1 else last


def choose_padding(
    tokenizer: PreTrainedTokenizerBase, stops: list[int], rows: int, resize: bool
) -> None:
    """Choose a pad token that is neither BOS nor an end of turn: the tokenizer's, a special token that the template
    does not use, or a new one in a spare row of the embedding, which `resize` adds. Raise ContractError if none is."""
    used = {*stops, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in used:
        return
    used |= {i for ids, _ in tokenize_conversations(tokenizer, GOLDEN) for i in ids}
    special = {
        i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and i not in used
    }
    if special:
        names = sorted(special.items(), key=lambda item: ("pad" not in item[1], item[0]))
        tokenizer.pad_token = names[0][1]
    elif resize or len(tokenizer) < rows:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        used_up = (
            f"all {rows} rows of the embedding are in use, and {tokenizer.eos_token} ends a turn"
        )
        way_out = "Set sft.template.resize=true, which adds a row for <|pad|>."
        raise ContractError(f"no token is free for padding: {used_up}. {way_out}")


def choose_template(tokenizer: PreTrainedTokenizerBase, cfg: Template, train: bool) -> str:
    """Return the Jinja source of the template that `template=` names."""
    vocabulary, kind = set(tokenizer.get_vocab()), cfg.kind
    if kind in ("auto", "own"):
        own = own_template(tokenizer, markers=train)
        written = answer_in(tokenizer, own) if own and train and kind == "auto" else ""
        if own and "</think>" not in written:
            return own
        # as Qwen3's, with an empty block of thoughts: an answer would pass no check of its text
        if own:
            problem = (
                f"the tokenizer's template writes {written!r} for {GOLDEN[0][-1]['content']!r}"
            )
            log.warning(
                "warning: template=auto: %s, so ours is used. template=own keeps it.", problem
            )
        elif not train:
            problem = "the tokenizer has no chat template, so the prompt format of the model's training is not known"
            way_out = "Name the template: template=chatml, template=plain, or template=file sft.template.path=…."
            raise ContractError(f"{problem}. {way_out}")
        if kind == "own":
            problem = (
                "marks no assistant tokens, nor does TRL's"
                if tokenizer.chat_template
                else "does not exist"
            )
            file = "a file with {% generation %} markers (template=file sft.template.path=…)"
            way_out = f"Use template=auto, or {file}."
            raise ContractError(f"template=own: the tokenizer's chat template {problem}. {way_out}")
        kind = fitting_template(tokenizer)
    if kind == "file":
        assert cfg.path is not None
        return read_template(Path(cfg.path))
    if lacking := " and ".join(sorted(TURN_TOKENS.get(kind, set()) - vocabulary)):
        raise ContractError(f"template={kind}: the vocabulary lacks {lacking}. Use template=plain.")
    if kind not in TURN_TOKENS and tokenizer.eos_token is None:
        raise ContractError(
            f"template={kind}: the tokenizer has no EOS token that could end a turn."
        )
    return template_of(tokenizer, kind)


def fitting_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the name of the first template of `templates/` whose special tokens the vocabulary has."""
    vocabulary = set(tokenizer.get_vocab())
    return next((name for name, tokens in TURN_TOKENS.items() if tokens <= vocabulary), "plain")


def answer_in(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return the trained text of the first golden answer in a template with markers; '' if it cannot be rendered."""
    own, tokenizer.chat_template = tokenizer.chat_template, undated(template)
    try:
        [(ids, trained)] = tokenize_conversations(tokenizer, GOLDEN[:1])
        return str(tokenizer.decode([*compress(ids, trained)], skip_special_tokens=True)).strip()
    except UserError:
        return ""
    finally:
        tokenizer.chat_template = own


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if the tokenizer puts BOS before every text, as in the base model's training."""
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def own_template(tokenizer: PreTrainedTokenizerBase, markers: bool) -> str | None:
    """Return the tokenizer's template; with `markers`, its or TRL's version that marks assistant tokens, else None."""
    from trl import get_training_chat_template
    from trl.chat_template_utils import has_generation_markers

    own = tokenizer.chat_template
    if not own or not markers:
        return own or None
    try:
        return str(get_training_chat_template(tokenizer) or own)
    except ValueError:
        return str(own) if has_generation_markers(own) else None


class OtherTemplate(Contract):
    """The contract of a model with another chat template, whose next marker ends the answer."""

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("<|")[0]


def in_form(contract: Contract, form: str) -> Contract:
    """Return the contract in the form `text` or in a template of `templates/`, with the model's own stop tokens. The
    markers of a template are plain text to a vocabulary without them."""
    tokenizer = contract.tokenizer
    if form == "text":
        return Continuation(tokenizer, contract.stop_ids, contract.marked)
    tokenizer.chat_template = template_of(tokenizer, other_form(tokenizer, form))
    return OtherTemplate(tokenizer, contract.stop_ids, contract.marked)


def other_form(tokenizer: PreTrainedTokenizerBase, form: str) -> str:
    """Return the form, or INSTEAD if it is the model's own."""
    return (
        INSTEAD
        if form != "text" and template_of(tokenizer, form) == tokenizer.chat_template
        else form
    )


def template_of(tokenizer: PreTrainedTokenizerBase, kind: str) -> str:
    """Return a template of `templates/`, which writes BOS where the tokenizer adds it to a text."""
    bos = "{{- bos_token -}}\n" if adds_bos(tokenizer) else ""
    return bos + (TEMPLATES / f"{kind}.jinja").read_text(encoding="utf-8")
