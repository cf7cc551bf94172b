"""Differences of config.json and generation_config.json."""

from collections.abc import Iterator
from typing import Any

from stages.extras.examine.folders.difference import Difference, Level, flatten, value_text
from stages.extras.examine.folders.key_effects import (
    EFFECTS,
    OF_THE_FILE,
    WITHOUT_EFFECT,
    row_difference,
)
from stages.extras.examine.folders.model_folder import ModelFolder

CONFIG, GENERATION = "config.json", "generation_config.json"
UNKNOWN_EFFECT = "the model's class reads it: answers may change"
UNREAD_EFFECT = "the model's class does not know this key"
LIMIT = "max_position_embeddings"


def config_differences(start: ModelFolder, model: ModelFolder) -> Iterator[Difference]:
    """Yield the differences of config.json, as the models' class completes both with its defaults."""
    raw = model.read_settings(CONFIG)
    if not model.is_gguf and not raw:
        yield row_difference(CONFIG, "there", "missing", Level.breaks)
        return
    if model.config is None and not model.has_unreadable_weights:
        text = value_text(model.config_problem)
        yield row_difference(CONFIG, "read", text, Level.breaks)
    if start.config is None or model.config is None:
        first, second = flatten(start.read_settings(CONFIG)), flatten(raw)
        known_keys = {*first, *second}
    else:
        first, second = flatten(start.config.to_dict()), flatten(model.config.to_dict())
        known_keys = {*flatten(type(model.config)().to_dict()), *EFFECTS["config"]}
    for key in sorted({*first, *second} - {*OF_THE_FILE}):
        if first.get(key) != second.get(key):
            yield config_difference(key, first.get(key), second.get(key), known_keys)


def config_difference(key: str, start: Any, model: Any, known_keys: set[str]) -> Difference:
    """Return the difference of one key of config.json with what it does."""
    name = key.rpartition(".")[2]
    top = key.partition(".")[0]
    effects = EFFECTS["config"]
    level, effect = Level.changes, effects.get(name) or effects.get(top) or UNKNOWN_EFFECT
    if name in WITHOUT_EFFECT or top in WITHOUT_EFFECT:
        level, effect = Level.differs, "no answer depends on this key alone"
    elif effect == UNKNOWN_EFFECT and key not in known_keys:
        level, effect = Level.differs, UNREAD_EFFECT
    elif name == LIMIT and isinstance(start, int) and isinstance(model, int) and model > start:
        level = Level.differs
    return Difference(f"config.{key}", value_text(start), value_text(model), effect, level)


def generation_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return the differences of generation_config.json. A key that is not there has the default of `generate`."""
    first, second = start.read_settings(GENERATION), model.read_settings(GENERATION)
    differences = list[Difference]()
    for key in sorted({*first, *second} & {*EFFECTS["generation"]}):
        default, effect = EFFECTS["generation"][key]
        old, new = first.get(key), second.get(key)
        is_same = (default if old is None else old) == (default if new is None else new)
        if not is_same:
            texts = value_text(old), value_text(new)
            differences.append(Difference(f"generation.{key}", *texts, effect, Level.changes))
    return differences
