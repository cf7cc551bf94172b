"""Tokenizers of SentencePiece's pieces, made small for tests."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

INST = (
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '[INST] ' ~ m.content ~ ' [/INST]' -}}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' ~ m.content ~ eos_token -}}"
    "{%- else -%}{{ raise_exception('no system turn') }}{%- endif -%}{%- endfor -%}"
)
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY = {"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}}
NEVER = {"normalizer": REPLACE}
CORPUS = ["▁Name▁a▁fruit▁that▁starts▁with▁A.▁Try▁apple.▁[INST]▁[/INST]▁0123456789▁user▁Größer"] * 3


def metaspace(scheme: str) -> dict[str, Any]:
    rule = {"replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {"pre_tokenizer": {"type": "Metaspace", **rule}}


def pieces(
    rule: dict[str, Any], template: str, corpus: Sequence[str] = CORPUS
) -> PreTrainedTokenizerBase:
    """Return a tokenizer of pieces and bytes that splits text by this rule, with some merges across words."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*special, *byte_tokens], show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(special)]
    backend = Tokenizer.from_str(json.dumps(definition | rule))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    )
