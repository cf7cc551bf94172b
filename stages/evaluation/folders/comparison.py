"""The differences of a model's folder from the folder that its training started from, part by part."""

from collections.abc import Callable

from stages.evaluation.folders.adapter_keys import adapter_differences
from stages.evaluation.folders.config_keys import config_differences, generation_differences
from stages.evaluation.folders.difference import Difference, Level, value_text
from stages.evaluation.folders.key_effects import row_difference
from stages.evaluation.folders.model_folder import ModelFolder
from stages.evaluation.folders.tensor_keys import weight_differences
from stages.evaluation.folders.tokenizer_keys import tokenizer_differences

Find = Callable[[ModelFolder, ModelFolder], list[Difference]]


def folder_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return all differences of a model from its start. A part that cannot be read is a difference itself."""
    parts: dict[str, Find] = {
        "config.json": config_differences,
        "generation_config.json": generation_differences,
        "tokenizer": tokenizer_differences,
    }
    if model.adapter:
        parts["adapter"] = adapter_differences
    elif not (start.is_gguf or model.is_gguf):
        parts["weights: files"] = weight_differences
    differences = list[Difference]()
    for key, find in parts.items():
        try:
            differences += find(start, model)
        except Exception as error:  # a damaged file may raise any exception
            if model.has_unreadable_weights and str(error) == model.config_problem:
                continue
            reason = value_text(" ".join(str(error).split()) or type(error).__name__)
            if reason not in [each.model for each in differences]:
                differences.append(row_difference(key, "read", reason, Level.breaks))
    return differences
