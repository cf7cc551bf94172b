"""Which chat template a base model gets: its own, one of ours that its vocabulary has the tokens for, or a file."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.config.blocks.models import Template
from stages.models.rendering import ContractError
from stages.store.source_files import read_template

TEMPLATES = Path(__file__).parent / "templates"
# Templates made of special tokens, and those that a vocabulary must have for them. The first that fits is taken.
TURNS = {
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "llama3": {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    "gemma": {"<start_of_turn>", "<end_of_turn>"},
}


def chat_template(tokenizer: PreTrainedTokenizerBase, cfg: Template, train: bool) -> str:
    """The Jinja source that `template=` asks for."""
    vocabulary, kind = set(tokenizer.get_vocab()), cfg.kind
    if kind in ("auto", "own"):
        if own := own_template(tokenizer, markers=train):
            return own
        if not train:
            raise ContractError(
                "the tokenizer has no chat template, so how the model was trained to be asked is not known. Name its "
                "template: template=chatml, plain, or file with sft.template.path=…."
            )
        if kind == "own":
            raise ContractError(
                "template=own: the assistant's tokens cannot be told apart in the tokenizer's chat template"
                + (", and TRL has no training version of it." if tokenizer.chat_template else ": it has none.")
                + " Use template=auto, or a file with {% generation %} markers (template=file sft.template.path=…)."
            )
        kind = next((name for name, tokens in TURNS.items() if tokens <= vocabulary), "plain")
    if kind == "file":
        assert cfg.path is not None
        return read_template(Path(cfg.path))
    if lacking := TURNS.get(kind, set()) - vocabulary:
        raise ContractError(
            f"template={kind}: the vocabulary lacks {' and '.join(sorted(lacking))}. Use template=plain."
        )
    if kind not in TURNS and tokenizer.eos_token is None:
        raise ContractError(f"template={kind}: the tokenizer has no EOS token to end a turn with.")
    bos = "{{- bos_token -}}\n" if adds_bos(tokenizer) else ""
    return bos + (TEMPLATES / f"{kind}.jinja").read_text(encoding="utf-8")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts BOS before a text, as the base was trained."""
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def own_template(tokenizer: PreTrainedTokenizerBase, markers: bool) -> str | None:
    """The tokenizer's own template as it is, or with generation markers, from itself or from TRL."""
    from trl import get_training_chat_template
    from trl.chat_template_utils import has_generation_markers

    own = tokenizer.chat_template
    if not own or not markers:
        return own or None
    try:
        return str(get_training_chat_template(tokenizer) or own)
    except ValueError:
        return str(own) if has_generation_markers(own) else None
