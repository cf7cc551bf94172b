"""Models and tokenizers on disk and on devices: the only place that loads, saves and scores them."""

import contextlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
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
from transformers.utils import logging as transformers_logging
from trl.trainer import utils as trl_utils

from stages.config.choices import Forward, Precision, Weights
from stages.config.errors import UserError
from stages.models import lm_head
from stages.models.packing import pack_pairs
from stages.store.records import PairLogProbs

# The libraries' own progress bars and advice would drown what the stages say.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
datasets.disable_progress_bars()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
for client in ("httpx", "httpx2"):
    logging.getLogger(client).setLevel(logging.WARNING)


lm_head.install()

# Never TF32, which NVIDIA's containers switch on by an environment variable: it is not fp32, and under bf16 autocast a
# GPU has no product of fp32 left that would gain by it.
torch.set_float32_matmul_precision("highest")


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
    """A causal language model from a folder of safetensors, for evaluation; on the CPU unless a device is given.

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
            # On some CPUs it scores in bf16 what it trains in fp32: policy and reference would differ.
            module.support_avx512bf16_for_cpu = False
    return model.eval()  # type: ignore[no-any-return]


def sampled_as(precision: Precision) -> Weights:
    """How the weights are held of a model that generates: in the precision itself, without autocast."""
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


# What is arithmetic and no mistake: mean difference of log-probs per token, in nats.
AGREEMENT = {Precision.fp32: 1e-5, Precision.bf16: 0.02}


def agreement(precision: Precision, nats: float) -> float:
    """How far apart log-probs of one model may be, per token, that are so many nats from 0 on average: rounding is
    relative."""
    return AGREEMENT[precision] * max(1.0, nats)


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic in which transformers' Trainer runs a model of fp32 weights under `bf16=True`."""
    if precision is Precision.bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def add_scoring(model: PreTrainedModel, forward: Forward = Forward.shared_prefix) -> PreTrainedModel:
    """Give the model TRL's fused LM head and the forward for pairs, as a trainer does: policy and reference are then
    scored by the same arithmetic."""
    if forward is Forward.shared_prefix:
        pack_pairs(model)
    trl_utils.add_fused_lm_head(model)
    return model


@torch.no_grad()
def pair_log_probs(
    model: PreTrainedModel, pairs: Sequence[PairLogProbs], pad_id: int, precision: Precision
) -> list[tuple[list[float], list[float]]]:
    """Log-prob of every completion token given what precedes it, of chosen and of rejected.

    One forward of a model with a fused LM head; in fp32 the batch matters below 1e-5 per token.
    """
    sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    length = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor(prompt + completion)
        attention[i, :end] = 1
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    device = model.device
    with autocast(precision, device):
        output = model(
            input_ids=ids.to(device),
            attention_mask=attention.to(device),
            labels=labels.to(device),
            use_cache=False,
            fused_lm_head=True,
        )
    scored = output.log_probs.float().cpu()  # (rows, length - 1): position t scores token t + 1
    found = [
        scored[i, len(prompt) - 1 : len(prompt) + len(completion) - 1].tolist()
        for i, (prompt, completion) in enumerate(sequences)
    ]
    return list(zip(found[: len(pairs)], found[len(pairs) :], strict=True))
