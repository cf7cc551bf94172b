"""What a key of a model's folder does to answers if it differs from the start's, in key_effects.yaml."""

from typing import Any

from stages.config.installation import read_beside
from stages.extras.examine.folders.difference import Difference, Level

EFFECTS: dict[str, Any] = read_beside(__file__)
OF_THE_FILE: list[str] = EFFECTS["config_of_the_file"].split()
WITHOUT_EFFECT: list[str] = EFFECTS["config_without_effect"].split()


def row_difference(key: str, start: str, model: str, level: Level) -> Difference:
    """Return the difference of a row that is not one key of a file, with its effect."""
    return Difference(key, start, model, EFFECTS["rows"][key], level)
