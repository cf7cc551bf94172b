"""Export a model folder as one GGUF file, the format of llama.cpp, Ollama and LM Studio, with the `gguf` package.

Layout and names follow llama.cpp's converter: rotary halves of a Llama's queries and keys are interleaved, vectors are
f32. transformers reads every file back: it is kept only if its shape and tokens equal the folder's."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import QuantError, quantize
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from stages.config.choices import GGUFType
from stages.config.errors import UserError
from stages.extras.export import sentencepiece_tokens
from stages.extras.export.sentencepiece_tokens import SentencePieceTokens
from stages.models.base_licence import read_licence
from stages.models.loading import describe_gguf, load_config, load_model, load_tokenizer
from stages.models.rendering import GOLDEN, adds_bos, golden_conversations, token_ids

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,  # as llama.cpp's converter
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
TYPES = {
    GGUFType.f32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    GGUFType.f16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    GGUFType.q8_0: (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
# Folder and file must agree on these keys of the config: the file stores them, or its readers assume a value.
SHAPE = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
]


def write_gguf(model: Path, file: Path, dtype: GGUFType, name: str) -> None:
    """Write the model folder as `file`, completely or not at all.
    Raise UserError if the architecture or the tokenizer is not supported, or reading back gives another model."""
    config, tokenizer = read_exportable(model)
    limit_to_window(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft.gguf")
    writer = gguf.GGUFWriter(draft, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        for key, value in read_licence(model).items():
            writer.add_string(f"general.{key.replace('_', '.')}", str(value))
        writer.add_file_type(TYPES[dtype][1])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_shape(writer, config)
        add_tokenizer(writer, model, tokenizer, config.vocab_size)
        add_weights(writer, model, config, TYPES[dtype][0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        read_back(draft, config, tokenizer)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read_exportable(model: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Return config and tokenizer of a model folder. Raise UserError if GGUF has no name for one of them."""
    config = load_config(model)
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"export.format=gguf: files are not written for {config.model_type} models, only for {', '.join(ARCHITECTURES)}. "
            "llama.cpp's convert_hf_to_gguf.py supports more: run it on the model's folder. Or type export.format=hub."
        )
    tokenizer = load_tokenizer(model)
    require_tokenizer(tokenizer)
    return config, tokenizer


def limit_to_window(config: PretrainedConfig) -> None:
    """Limit the context of a Mistral to its sliding window. Readers of its GGUF architecture know no window, so they
    compute the same up to there."""
    window = getattr(config, "sliding_window", None)
    if config.model_type == "mistral" and window:
        config.max_position_embeddings = min(window, config.max_position_embeddings)


def add_shape(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head = head_dim(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def head_dim(config: PretrainedConfig) -> int:
    return config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads


def add_weights(
    writer: gguf.GGUFWriter, model: Path, cfg: PretrainedConfig, dtype: gguf.GGMLQuantizationType
) -> None:
    """Add every tensor under its GGUF name: vectors as f32, matrices as `dtype`, or f16 if its blocks do not fit."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[cfg.model_type], cfg.num_hidden_layers)
    for weight_name, tensor in load_model(model).state_dict().items():
        if weight_name == "lm_head.weight" and cfg.tie_word_embeddings:
            continue
        name = names.get_name(weight_name, (".weight", ".bias"))
        if name is None:
            raise UserError(
                f"GGUF has no name for {weight_name}: this is not a plain {cfg.model_type} model."
            )
        values = tensor.numpy()
        if ARCHITECTURES[cfg.model_type] == gguf.MODEL_ARCH.LLAMA and re.search(
            r"\.attn_[qk]\.", name
        ):
            values = interleave(values, head_dim(cfg))
        block_type = dtype
        if values.ndim == 1:
            block_type = gguf.GGMLQuantizationType.F32
        try:
            data = quantize(values, block_type)
        except QuantError:
            block_type = gguf.GGMLQuantizationType.F16
            data = quantize(values, block_type)
        if block_type == gguf.GGMLQuantizationType.F16 and not np.isfinite(data).all():
            raise UserError(
                f"export.dtype=f16: {weight_name} has values above 65,504, which f16 cannot hold. Type export.dtype=f32."
            )
        writer.add_tensor(name, data, raw_dtype=block_type)


def interleave(values: NDArray[Any], head: int) -> NDArray[Any]:
    """Return rows of queries or keys, (heads × head, …), with each head's two rotary halves interleaved. transformers
    rotates component i with i + head/2, llama.cpp 2i with 2i + 1."""
    halves = values.reshape(-1, 2, head // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def require_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if a tokenizer is of a kind without a name in GGUF, or llama.cpp would give other ids by it."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] != "BPE":
        problem = f"files are written with BPE tokenizers, not with {backend['model']['type']}"
        raise UserError(f"export.format=gguf: {problem}. Type export.format=hub.")
    if not sentencepiece_tokens.is_sentencepiece(backend):
        pre_tokenizer_name(backend["pre_tokenizer"])
    elif not SentencePieceTokens(tokenizer, backend).reads_texts_alike():
        problem = "by the order of this tokenizer's pieces, llama.cpp would give other tokens"
        raise UserError(f"export.format=gguf: {problem}. Type export.format=hub.")


def add_tokenizer(
    writer: gguf.GGUFWriter, model: Path, tokenizer: PreTrainedTokenizerBase, rows: int
) -> None:
    """Add tokens with types, merges or scores, special ids and template. Embeddings beyond the vocabulary get unused
    tokens."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    has_scores = sentencepiece_tokens.is_sentencepiece(backend)
    add_tokens(writer, tokenizer, rows, has_scores)
    if has_scores:
        pieces = SentencePieceTokens(tokenizer, backend)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(pieces.scores_by_row(rows))
        writer.add_add_space_prefix(pieces.adds_space())
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(backend["pre_tokenizer"]))
        writer.add_add_space_prefix(False)
    special = gguf.SpecialVocab(model, load_merges=not has_scores, n_vocab=rows)
    special.add_special_token["bos"] = adds_bos(tokenizer)
    if tokenizer.chat_template:
        # Only training needs `{% generation %}`, which most readers refuse: it is commented out.
        marks = r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}"
        special.chat_template = re.sub(marks, r"{#\1 \2#}", tokenizer.chat_template)
    special.add_to_gguf(writer, quiet=True)


def add_tokens(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, has_scores: bool
) -> None:
    """Add the token of each row of the embedding, and its type."""
    tokens = list[str]()
    types = list[gguf.TokenType]()
    for i in range(rows):
        if i < len(tokenizer):
            tokens.append(tokenizer.convert_ids_to_tokens(i))
        else:
            tokens.append(f"[PAD{i}]")
        types.append(token_type(tokenizer, i, has_scores))
    writer.add_token_list(tokens)
    writer.add_token_types(types)


def token_type(tokenizer: PreTrainedTokenizerBase, index: int, has_scores: bool) -> gguf.TokenType:
    """Return the type of a token in GGUF; of a row that no token has, `UNUSED`."""
    if index >= len(tokenizer):
        return gguf.TokenType.UNUSED
    added = tokenizer.added_tokens_decoder.get(index)
    if has_scores and index == tokenizer.unk_token_id:
        return gguf.TokenType.UNKNOWN
    if added is not None and added.special:
        return gguf.TokenType.CONTROL
    if added is not None:
        return gguf.TokenType.USER_DEFINED
    if has_scores and sentencepiece_tokens.BYTE.fullmatch(tokenizer.convert_ids_to_tokens(index)):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def pre_tokenizer_name(definition: dict[str, Any] | None) -> str:
    """Return llama.cpp's name for the tokenizer's rule to split text before BPE. Raise UserError if it has none."""
    parts = list[dict[str, Any]]()
    if definition is not None:
        parts = definition.get("pretokenizers", [definition])
    kinds = [part["type"] for part in parts]
    if parts and not parts[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"]:
            for name, split in GGUF_PRE_TOKENIZER_SPLITS.items():
                if parts[0]["pattern"] == {"Regex": split}:
                    return str(name)
    raise UserError(
        f"export.format=gguf: the tokenizer splits text by a rule that has no name in GGUF ({', '.join(kinds) or 'none'}). "
        "Type export.format=hub."
    )


def read_back(file: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Read the file with transformers, and raise UserError if its shape or its tokens differ from the folder's."""
    file_config, file_tokenizer = describe_gguf(file)
    folder_shape = config.to_dict()
    file_shape = file_config.to_dict()
    lost = list[str]()
    for key in SHAPE:
        # a kind of model that has no such part has no key for it
        if (folder_shape.get(key) or None) != (file_shape.get(key) or None):
            lost.append(key)
    if not is_same_tokenizer(file_tokenizer, tokenizer):
        lost.append("tokenizer")
    if lost:
        raise UserError(
            f"export.format=gguf: GGUF would lose {', '.join(lost)}. Type export.format=hub."
        )


def is_same_tokenizer(
    file_tokenizer: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Return whether a file's tokenizer gives the folder's token ids for the golden messages and conversations.
    `require_tokenizer` has compared what llama.cpp does with pieces, and transformers does in another way."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    has_scores = sentencepiece_tokens.is_sentencepiece(backend)
    if has_scores and not SentencePieceTokens(tokenizer, backend).puts_space_before_text:
        return True  # transformers always puts one
    texts = [message["content"] for messages in GOLDEN for message in messages]
    if any(file_tokenizer(text).input_ids != tokenizer(text).input_ids for text in texts):
        return False
    if has_scores:
        return True  # transformers has no rule for what follows a special token
    conversations = golden_conversations(tokenizer)
    if golden_conversations(file_tokenizer) != conversations:
        return False
    return all(
        token_ids(file_tokenizer, text) == token_ids(tokenizer, text) for text in conversations
    )
