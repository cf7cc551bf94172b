"""Settings that errors name are what a shell and Hydra read."""

import shlex
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from stages.config.override_text import override

VALUES: list[Any] = [
    *("a", "a b", "größe", "a, b", "it's", 'say "a"', "a\\", 'a\\"', "~/x", "1", "null", "true", "-", "", "${a}"),
    *(1, 0.5, None, True, ["a b", 1]),
    {"prompt": "Gute Antwort", "image": None, "below 0.5": "left", "a, b": "c", "a:b": ["d"]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    [word] = shlex.split(override("data.file.x", value))
    parsed = OverridesParser.create().parse_override(word)
    assert parsed.key_or_group == "data.file.x"
    assert parsed.value() == value
