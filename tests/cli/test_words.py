"""Check that the words of a setting are the file names of its package, found without importing the files."""

import re
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from stages.cli.explain import explain
from stages.config.blocks.models import TEMPLATES
from stages.config.installation import ROOT
from stages.config.schema import TRACKERS
from stages.models import chat_templates
from stages.store import plugins
from tests.helpers import composed, refused, settings


def test_a_rooms_words_are_its_file_names() -> None:
    assert plugins.plugin_words("labelers", "Labeler") == [
        "dataset",
        "ensemble",
        "human",
        "judge",
        "own",
        "reward_model",
        "source_order",
        "verifier",
    ]
    assert plugins.plugin_words("samplers", "Sampler") == ["generate", "hf", "openai", "vllm"]
    assert plugins.plugin_words("tracking", "Run") == sorted(TRACKERS)
    templates = {path.stem for path in chat_templates.TEMPLATES.glob("*.jinja")}
    assert templates == TEMPLATES.keys() - {"auto", "own", "file"}


def test_conf_answers_the_rooms() -> None:
    """Every word of these packages has an option in conf/ under its name."""
    for group, room, kind, more in (
        ("label", "labelers", "Labeler", ()),
        ("sample", "samplers", "Sampler", ("file",)),
    ):
        assert {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} == {
            *plugins.plugin_words(room, kind),
            *more,
        }
    trackers = {path.stem for path in (ROOT / "conf" / "tracker").glob("*.yaml")}
    assert trackers == {*plugins.plugin_words("tracking", "Run"), "none"} == {*TRACKERS, "none"}


@pytest.mark.extended
def test_only_a_stage_of_the_command_is_built_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException) as error:
        composed("recipe=tiny", "rebuild=gc")
    message = "rebuild=gc: this value is not accepted. Accepted: base, source, data, select, sft"
    assert message in str(explain(error.value))
    assert settings("recipe=tiny", "rebuild=sft").rebuild == "sft"
    for typed in (
        ("rebuild=kto",),
        ("stage=sft", "rebuild=dpo"),
        ("stage=plan", "align=none", "rebuild=pairs"),
    ):
        message = f"{typed[-1]}: not a stage of this command, which has .*data"
        assert re.match(message, refused("recipe=tiny", f"outputs={tmp_path}", *typed))
