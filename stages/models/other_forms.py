"""Render a prompt in another form than the model's own: in another chat template, whose markers are plain text to a
vocabulary without them, or in none. A model that answers in its own form alone has learnt the form, not the task."""

from stages.models.chat_templates import TEMPLATES, adds_bos
from stages.models.contract import Continuation, Contract

INSTEAD = "chatml"  # takes the place of a form that is the model's own


class OtherTemplate(Contract):
    """The contract of a model with another chat template, whose next marker ends the answer."""

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("<|")[0]


def in_form(contract: Contract, form: str) -> Contract:
    """Return the contract in the form `text` or in a template of `templates/`, with the model's own stop tokens."""
    tokenizer = contract.tokenizer
    if form == "text":
        return Continuation(tokenizer, contract.stop_ids, contract.marked)
    bos = "{{- bos_token -}}\n" if adds_bos(tokenizer) else ""
    templates = [bos + (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") for name in (form, INSTEAD)]
    tokenizer.chat_template = next(template for template in templates if template != tokenizer.chat_template)
    return OtherTemplate(tokenizer, contract.stop_ids, contract.marked)
