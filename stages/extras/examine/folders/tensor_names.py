"""Parts of a model by the names of their tensors."""

import re

LAYER = re.compile(r"\.(\d+)\.")  # the number of a layer
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
# parts of a model by a pattern in the names of their tensors; the first that fits counts
KINDS = {
    "biases": r"\.bias$",
    "norms": r"norm|\bln_|layernorm",
    "head": r"lm_head|embed_out",
    "embedding": r"embed|\bwte\b|\bwpe\b",
    "attention": r"attn|attention",
    "feed-forward": r"mlp|ffn|feed_forward|experts|dense",
}
OTHER_KIND = "others"


def is_head(name: str) -> bool:
    return name.endswith(HEADS)


def is_embedding(name: str) -> bool:
    return name.endswith(EMBEDDINGS)


def kind_of(name: str) -> str:
    """Return the part of a model that a tensor belongs to."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, name):
            return kind
    return OTHER_KIND
