"""Models and tokenizers on disk and on devices: the only place that loads and saves them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stages.config.choices import Precision, Weights
from stages.config.errors import UserError


def device_of(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime.device={name}: torch {torch.__version__} sees no CUDA device.")
    return torch.device(name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return]


def embedding_rows(folder: Path) -> int:
    """How many tokens the embedding of a model folder has rows for."""
    return int(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size)


def load_model(folder: Path, weights: Weights = Weights.fp32, device: torch.device | None = None) -> PreTrainedModel:
    """A causal language model from a folder of safetensors, in eval mode; on the CPU unless a device is given.

    nf4 holds the linear layers but the head in 4 bits with double quantisation (arXiv:2305.14314), the rest in fp32.
    """
    device = device or torch.device("cpu")
    options: dict[str, Any] = {"dtype": torch.bfloat16 if weights is Weights.bf16 else torch.float32}
    if weights is Weights.nf4:
        options["quantization_config"] = four_bits()
        options["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
    except (SafetensorError, OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder} holds no loadable model: {' '.join(str(error).split())[:300]}") from error
    if weights is not Weights.nf4:
        return model.to(device).eval()  # type: ignore[no-any-return]
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # With AVX512-BF16 this layer scores in bf16 and trains in fp32: policy and reference would differ.
            module.support_avx512bf16_for_cpu = False
    return model.eval()  # type: ignore[no-any-return]


def sampled_as(precision: Precision) -> Weights:
    """The dtype of a model's weights while it generates: the precision itself, without autocast."""
    return Weights.bf16 if precision is Precision.bf16 else Weights.fp32


def four_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,  # autocast lowers it where precision=bf16
    )


def save_model(model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Weights as safetensors, with config and generation config; of a model with an adapter, the adapter alone.

    `state` holds the weights where they are divided among processes.

    Raises:
        UserError: for weights that are not finite.
    """
    for name, values in model.named_parameters() if state is None else state.items():
        if not bool(values.isfinite().all()):
            raise UserError(f"training left {name} with values that are not finite. Lower the learning rate.")
    model.save_pretrained(folder, state_dict=state)
