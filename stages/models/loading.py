"""Load and save models and tokenizers: the only module that does."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_fsdp_enabled

from stages.config.choices import Precision, Weights
from stages.config.errors import UserError
from stages.models import safe_folder
from stages.models.adapter_folder import read_adapter

if TYPE_CHECKING:
    from peft import PeftModel

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
AutoRewardModel = transformers.AutoModelForSequenceClassification  # with one output
# What to do about weights that are not finite, and that nothing here has trained
OTHER_WEIGHTS = "Copy the file again, or take an earlier checkpoint of its training."
# Without trust_remote_code=False, transformers asks on the terminal whether to run a folder's code.
LOCAL_WITHOUT_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def resolve_device(name: str) -> torch.device:
    """Return the torch device of a setting: `auto` is the accelerator that torch sees, or the CPU if there is none.
    Apple's does not count: it has no fp64, and its memory is the CPU's."""
    if name == "auto":
        name = "cpu"
        device = torch.accelerator.current_accelerator(check_available=True)
        if device and device.type != "mps":
            name = device.type
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime.device={name}: torch {torch.__version__} sees no CUDA device.")
    if name == "cpu":
        return torch.device(name)
    # A process of a training has its own device, also before Trainer makes that the current one.
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def name_folder_in_errors(folder: Path, part: str, adapter: bool = False) -> Iterator[None]:
    """Around a library that reads the folder of a model, or an `adapter`, turn errors, but of memory, into a UserError of
    folder and part."""
    safe_folder.validate_folder(folder, adapter)
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{folder}: {part} cannot be loaded. {reason[:400]}") from error


def load_config(folder: Path) -> transformers.PretrainedConfig:
    with name_folder_in_errors(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, **LOCAL_WITHOUT_CODE)  # type: ignore[no-any-return]


def load_tokenizer(folder: Path, adapter: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, or the one beside an `adapter`."""
    with name_folder_in_errors(folder, "the tokenizer", adapter):
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_WITHOUT_CODE)
    if isinstance(tokenizer.chat_template, dict):  # several templates by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if tokenizer.chat_template:  # the byte-order mark of a file is no text
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    return tokenizer  # type: ignore[no-any-return]


def count_embedding_rows(folder: Path) -> int:
    """Return the number of rows of the embedding of the model in a folder."""
    return int(load_config(folder).get_text_config().vocab_size)


def tokens_without_row(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """Return the tokens for which an embedding of `rows` rows has none, by id."""
    tokens = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    return [tokens[index] for index in sorted(tokens)]


def locate_output_embedding(folder: Path) -> tuple[Path, str] | None:
    """Return the safetensors file that holds the output embedding of the model in a folder, and the tensor's name."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(folder), trust_remote_code=False)
    head = model.get_output_embeddings()
    if head is None:
        return None
    model.tie_weights()
    weights = model.named_parameters(remove_duplicate=False)
    names = [name for name, weight in weights if weight is head.weight]
    for name, file in files_by_tensor(folder).items():
        if name in names:
            return file, name
    return None


def context_length(config: transformers.PretrainedConfig) -> int | None:
    """Return the most tokens that a model reads, prompt and answer together; None if its config sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not limit or limit <= 0:
        return None
    return int(limit)


def read_context_length(folder: Path) -> int | None:
    """Return `context_length` of the model in a folder."""
    return context_length(load_config(folder))


def load_model(
    folder: Path, weights: Weights = Weights.fp32, device: torch.device | None = None
) -> PreTrainedModel:
    """Load a causal language model from a folder of safetensors, in eval mode, by default on the CPU.

    nf4 stores linear layers except the head in 4 bits with double quantisation (arXiv:2305.14314), others in fp32."""
    device = device or torch.device("cpu")
    options: dict[str, Any] = {"dtype": torch_dtype(weights)}
    if weights is Weights.nf4:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,  # autocast lowers it if precision=bf16
        )
        options["device_map"] = {"": device}
    model, missing = load_weights(AutoModelForCausalLM, folder, **options)
    if missing:
        raise UserError(
            f"{folder}: config.json describes weights that are in no file: {', '.join(missing[:3])}."
        )
    if weights is not Weights.nf4:
        return place_model(model, device).eval()
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # With AVX512-BF16 this layer scores in bf16 and trains in fp32: policy and reference would differ.
            module.support_avx512bf16_for_cpu = False
    return model.eval()  # type: ignore[no-any-return]


def unloaded_tensors(folder: Path, model: PreTrainedModel) -> list[str]:
    """Return the names of a folder's tensors of which a model has none, as of a vision tower beside its text part."""
    names = list[str]()
    elements = 0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it has no iterator
                names.append(name)
                elements += math.prod(tensors.get_slice(name).get_shape())
    if elements <= sum(weight.numel() for weight in {*model.parameters(), *model.buffers()}):
        return []  # perhaps by other names
    known = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    known += [name for name, _ in model.named_buffers()]
    ends = tuple(f".{name.removeprefix('model.')}" for name in known)
    return [name for name in names if not f".{name}".endswith(ends)]


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def files_by_tensor(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor in a folder."""
    files = dict[str, Path]()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    return files


def load_weights(model_class: Any, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """Return a folder's model as a class of transformers, and the names of missing weights, which are random. If the
    model will be sharded, the first process of each node reads the weights. In the others they are on the meta device
    (shapes without values), and receive their shard from the first process.
    Raise UserError if the folder cannot be loaded, or config.json describes another model than the weights."""
    # transformers reads it again, but its errors are less specific then
    config = load_config(folder)
    if getattr(config, "quantization_config", None):  # some machines would apply it, and others not
        raise UserError(
            f"{folder}: config.json names a quantization_config. Save the weights in full precision."
        )
    options |= LOCAL_WITHOUT_CODE | {"ignore_mismatched_sizes": True, "output_loading_info": True}
    if is_fsdp_enabled() and not PartialState().is_local_main_process:
        options["device_map"] = {"": "meta"}
    with name_folder_in_errors(folder, "the model"):
        model, report = model_class.from_pretrained(folder, use_safetensors=True, **options)
    for name, stored, described in sorted(report["mismatched_keys"]):
        shapes = f"{[*stored]} in the weights, {[*described]} by config.json"
        raise UserError(f"{folder}: {name} has two shapes: {shapes}. Take both from one model.")
    stacks = {stack_of(name) for name, _ in model.named_parameters()} - {""}
    for name in sorted(report["unexpected_keys"]):
        if stack_of(name) in stacks:
            raise UserError(
                f"{folder}: config.json describes fewer layers than the weights hold, as {name}."
            )
    return model, sorted(report["missing_keys"])


def stack_of(weight: str) -> str:
    """Return the name of the stack of layers that a weight is in, as `model.layers`; '' if it is in none."""
    layer = re.match(r"(.*?)\.\d+\.", weight)
    return layer[1] if layer else ""


def place_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Return the model on the device; a model that will be sharded stays where it is, as it may not fit there."""
    if is_fsdp_enabled():
        return model
    return model.to(device)  # type: ignore[arg-type]


def torch_dtype(weights: Weights) -> torch.dtype:
    return torch.bfloat16 if weights is Weights.bf16 else torch.float32


def create_reward_model(
    folder: Path, weights: Weights, device: torch.device, pad: int, seed: int
) -> PreTrainedModel:
    """Load a language model from a folder of safetensors, with a reward head in place of the LM head. The head is
    drawn from the seed, and reads the last token that is not padding."""
    torch.manual_seed(seed)
    model, _ = load_weights(AutoRewardModel, folder, dtype=torch_dtype(weights), num_labels=1)
    model.config.get_text_config().pad_token_id = pad
    return place_model(model, device).eval()


def load_reward_model(folder: Path, weights: Weights, device: torch.device) -> PreTrainedModel:
    """Load a sequence-classification model with one output from a folder of safetensors, in eval mode.
    Raise UserError if the model has several outputs, or weights are missing: a head would be drawn at random."""
    require_finite_files(folder)
    model, missing = load_weights(AutoRewardModel, folder, dtype=torch_dtype(weights))
    if missing:
        raise UserError(
            f"{folder} is not a reward model: it has no weights for {', '.join(missing[:3])}."
        )
    if model.config.num_labels != 1:
        raise UserError(
            f"{folder} has {model.config.num_labels} outputs, and a reward model must have one."
        )
    return model.to(device).eval()  # type: ignore[no-any-return]


def load_adapter(model: PreTrainedModel, folder: Path, trainable: bool = False) -> "PeftModel":
    """Return the model with the adapter from a folder of safetensors on top. Raise UserError if the config and the
    tensors of the adapter contradict each other, or do not fit the model."""
    # the import takes a second, and sampling does not need it
    from peft import LoraConfig, get_peft_model

    adapter = read_adapter(folder)
    plain_fields = adapter.without_patterns()
    with name_folder_in_errors(folder, "the adapter", adapter=True):
        config = replace(
            LoraConfig.from_pretrained(folder),
            **plain_fields,
            inference_mode=not trainable,
            base_model_name_or_path=None,  # peft would warn of another name
        )
        adapted = get_peft_model(model, config)
        report = adapted.load_adapter(folder, "default", is_trainable=trainable)
    adapter.require_all_loaded(report.missing_keys, report.unexpected_keys)
    return adapted  # type: ignore[no-any-return]


@contextmanager
def isolated_gguf(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the arguments that load a GGUF file from a temporary folder without other files. transformers would also
    read a config, template or adapter beside the file, and no fingerprint covers these."""
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        yield {
            "pretrained_model_name_or_path": folder,
            "gguf_file": file.name,
            **LOCAL_WITHOUT_CODE,
        }


def load_gguf(file: Path) -> Loaded:
    """Load the weights of a GGUF file, dequantised to fp32, and its tokenizer. A damaged file raises any exception.
    Raise UserError if weights are missing, which transformers would draw at random."""
    with isolated_gguf(file) as options:
        tokenizer = AutoTokenizer.from_pretrained(**options)
        # Without `config`, transformers parses the whole file once more for it.
        model, report = AutoModelForCausalLM.from_pretrained(
            config=AutoConfig.from_pretrained(**options),
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        way_out = "If it is one part of a model, join the parts: llama-gguf-split --merge"
        raise UserError(f"no weights for {', '.join(missing[:3])}. {way_out}.")
    model.config.name_or_path = ""
    return model, tokenizer


def describe_gguf(file: Path) -> tuple[transformers.PretrainedConfig, PreTrainedTokenizerBase]:
    with isolated_gguf(file) as options:
        return AutoConfig.from_pretrained(**options), AutoTokenizer.from_pretrained(**options)


def sampling_weights(precision: Precision) -> Weights:
    """Return the dtype of a model's weights during sampling: the precision itself, without autocast."""
    return Weights.bf16 if precision is Precision.bf16 else Weights.fp32


def save_model(
    model: PreTrainedModel, folder: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Save weights as safetensors with config and generation config; of a model with an adapter, the adapter alone.
    `state` holds the weights if they were sharded over processes. Raise UserError if a weight is not finite."""
    require_finite(dict(model.named_parameters()) if state is None else state)
    options = dict[str, Any](state_dict=state)
    if not isinstance(model, PreTrainedModel):
        # peft would save an embedding with new rows, in the type of training: merging would round it.
        options["save_embedding_layers"] = False
    model.save_pretrained(folder, **options)


def require_finite(weights: dict[str, Tensor]) -> None:
    """Raise UserError if a trained weight is not finite."""
    fault = first_not_finite(weights.items())
    if fault:
        raise UserError(f"training diverged: {fault}. Lower the learning rate.")


def require_finite_files(folder: Path) -> None:
    """Raise UserError, naming file and tensor, if a weight in a folder that nothing here has trained is not finite."""
    with name_folder_in_errors(folder, "the weights", adapter=True):
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                fault = first_not_finite((name, tensors.get_tensor(name)) for name in names)
            if fault:
                raise UserError(f"{file}: {fault}. {OTHER_WEIGHTS}")


def first_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return a clause on the first weight with a value that is NaN, infinite or too large for fp32; '' without one."""
    for name, weight in weights:
        if not weight.is_floating_point():
            continue
        if weight.itemsize not in (2, 4):  # fp64 or fp8
            weight = weight.float()
        finite = weight.isfinite()
        if not finite.all():
            count = finite.numel() - int(finite.sum())
            return f"{count:,} of the {finite.numel():,} values of {name} are NaN or infinite"
    return ""
