"""The differences of a model's folder from the folder that its training started from, part by part."""

from collections.abc import Callable, Iterable

from stages.config.errors import UserError
from stages.extras.examine.folders.adapter_keys import adapter_differences
from stages.extras.examine.folders.config_keys import config_differences, generation_differences
from stages.extras.examine.folders.difference import Difference, Level, value_text
from stages.extras.examine.folders.key_effects import EFFECTS, row_difference
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.extras.examine.folders.tensor_keys import weight_differences
from stages.extras.examine.folders.tokenizer_keys import tokenizer_differences

Find = Callable[[ModelFolder, ModelFolder], Iterable[Difference]]


def folder_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return all differences of a model from its start. A part that cannot be read is a difference itself, after those
    that were found in it before."""
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
            for difference in find(start, model):
                differences.append(difference)
        except Exception as error:  # a damaged file may raise any exception
            if model.has_unreadable_weights and str(error) == model.config_problem:
                continue
            reason = value_text(" ".join(str(error).split()) or type(error).__name__)
            if reason not in [each.model for each in differences]:
                differences.append(unread_difference(key, start, model, error, reason))
    return differences


def unread_difference(
    key: str, start: ModelFolder, model: ModelFolder, error: Exception, reason: str
) -> Difference:
    """Return the difference of a part that raised an error. It breaks the model if the error names the model's files; that
    the start's cannot be read, or an error of the comparison, says nothing of the model."""
    names_model = names_files_of(model, error)
    if names_model and (model.place == start.place or not names_files_of(start, error)):
        return row_difference(key, "read", reason, Level.breaks)
    text = value_text(f"could not be compared: {type(error).__name__}: {reason}")
    return Difference(key, "", text, EFFECTS["not_compared"], Level.unknown)


def names_files_of(folder: ModelFolder, error: Exception) -> bool:
    places = [str(place) for place in (folder.place, folder.adapter) if place]
    prefixes = [f"{place}{mark}" for place in places for mark in "/: "]
    return isinstance(error, UserError) and str(error).startswith(tuple(prefixes))
