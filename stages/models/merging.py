"""Merge an adapter into the weights under it, and prove on a prompt that the merged model computes the same.

An output layer may share its weights with the embedding. An adapter that changes one of the two, or both in other ways,
then gives the model an output layer of its own. Without that, the merge would change both."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.config.errors import UserError
from stages.models.loading import first_not_finite, load_adapter
from stages.store.source_files import ADAPTER_CONFIG

# of the largest logit: fp32 gives 1e-6, and one wrong matrix more than 0.1
MOST_DIFFERENCE = 1e-3
PROBE_ROWS, PROBE_LENGTH = 4, 8
MERGED_ELSEWHERE = "Merge the adapter where it was trained: model.path=MERGED"


def merge_adapter(
    model: PreTrainedModel, folder: Path, key: str, way_out: str = MERGED_ELSEWHERE
) -> PreTrainedModel:
    """Return the model with the adapter in a folder added to its weights. `key`: the setting that names the adapter.
    Raise UserError, naming adapter and model, if peft cannot merge the adapter, or the logits of the merged model
    differ from those of model and adapter."""
    name = model.config.name_or_path or type(model).__name__
    with warnings.catch_warnings():
        # peft warns of shared weights and of biases, with which this function deals
        warnings.simplefilter("ignore")
        adapted = load_adapter(model, folder).eval()
    require_bias(adapted, folder, key, name)
    ids = probe_ids(adapted)
    expected = probe_logits(adapted, ids)
    is_untied = untie_adapted_head(adapted)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: it cannot be merged into {name}: {reason} {way_out}.") from error
    fault = first_not_finite(merged.named_parameters())
    if fault:
        raise UserError(
            f"{key}: {fault} once it is merged. Correct lora_alpha in {folder / ADAPTER_CONFIG}."
        )
    if is_untied:
        tie_if_equal(merged)
    difference = largest_difference(probe_logits(merged, ids), expected)
    if not difference <= MOST_DIFFERENCE:
        problem = f"merged into {name}, its logits differ by {difference:.2g} of the largest, and {MOST_DIFFERENCE:g} is allowed"
        raise UserError(f"{key}: {problem}. Nothing is published. {way_out}.")
    return merged


def require_bias(adapted: PeftModel, folder: Path, key: str, name: str) -> None:
    """Raise UserError if the adapter adds a bias to a layer that has none: merging has no place for it."""
    for layer_name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or not any(layer.lora_bias.values()):
            continue
        if getattr(layer.get_base_layer(), "bias", None) is None:
            problem = f"lora_bias=true in {folder / ADAPTER_CONFIG}: {layer_name} of {name} has no bias to add to"
            raise UserError(f"{key}: {problem}. Train the adapter with lora_bias=false.")


def probe_ids(adapted: PeftModel) -> Tensor:
    """Return the prompt on which adapter and merged model are compared, (rows, tokens): token ids that are spread over
    the whole vocabulary, and those of which the adapter trains the rows."""
    model: PreTrainedModel = adapted.get_base_model()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    spread = torch.linspace(0, vocabulary - 1, PROBE_ROWS * PROBE_LENGTH).long()
    trained = torch.tensor(trained_tokens(adapted)[:PROBE_LENGTH], dtype=torch.long)
    rows = [spread.view(PROBE_ROWS, PROBE_LENGTH), trained.expand(PROBE_ROWS, -1)]
    return torch.cat(rows, dim=1).to(model.device)


def trained_tokens(adapted: PeftModel) -> list[int]:
    """Return the ids of tokens of which the adapter trains the rows."""
    by_layer = adapted.peft_config["default"].trainable_token_indices or []
    if not isinstance(by_layer, dict):
        return sorted(by_layer)
    tokens = set[int]()
    for indices in by_layer.values():
        tokens |= {*indices}
    return sorted(tokens)


def probe_logits(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of a model, with or without an adapter, for every token of the prompt."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids).logits
    return logits.float()


def largest_difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference between two models' logits, as a share of the largest logit."""
    difference = (logits - expected).abs().max()
    return float(difference / expected.abs().max())


def untie_adapted_head(adapted: PeftModel) -> bool:
    """Give the output layer weights of its own if it shares those of the embedding, and the adapter changes one of the
    two. Return whether it did."""
    model: PreTrainedModel = adapted.get_base_model()
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None in layers:
        return False
    embedding, head = map(layer_under_adapter, layers)
    is_adapted = embedding is not layers[0] or head is not layers[1]
    if not is_adapted or embedding.weight is not head.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    set_tied(model, False)
    return True


def layer_under_adapter(layer: Any) -> Any:
    """Return the model's own layer, around which peft may have put an adapter, trained rows or a trained copy."""
    while True:
        if isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()
        elif isinstance(layer, AuxiliaryTrainingWrapper):
            layer = layer.original_module
        else:
            return layer


def tie_if_equal(model: PreTrainedModel) -> None:
    """Let the output layer share the weights of the embedding again if the adapter has changed both alike."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        set_tied(model, True)


def set_tied(model: PreTrainedModel, is_tied: bool) -> None:
    """State in the config whether the output layer shares the weights of the embedding."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = is_tied
