"""Check that the words of a setting are the file names of its package, found without importing the files."""

from stages.cli.settings import option_files
from stages.config.blocks.models import TEMPLATES
from stages.config.blocks.processes import TRACKERS
from stages.config.extras import extras_with
from stages.models import chat_templates
from stages.store import plugins


def test_a_rooms_words_are_its_file_names() -> None:
    assert plugins.plugin_words("labelers", "Labeler") == sorted(
        [
            "dataset",
            "ensemble",
            "judge",
            "own",
            "reward_model",
            "source_order",
            "verifier",
            *extras_with("labeler.py"),
        ]
    )
    assert plugins.plugin_words("samplers", "Sampler") == ["generate", "hf", "openai", "vllm"]
    assert plugins.plugin_words("tracking", "Run") == sorted(TRACKERS)
    templates = {path.stem for path in chat_templates.TEMPLATES.glob("*.jinja")}
    assert templates == TEMPLATES.keys() - {"auto", "own", "file"}


def test_conf_answers_the_rooms() -> None:
    """Every word of these packages has an option under its name."""
    for group, room, kind, more in (
        ("label", "labelers", "Labeler", ()),
        ("sample", "samplers", "Sampler", ("file",)),
    ):
        assert {path.stem for path in option_files()[group]} == {
            *plugins.plugin_words(room, kind),
            *more,
        }
    trackers = {path.stem for path in option_files()["tracker"]}
    assert trackers == {*plugins.plugin_words("tracking", "Run"), "none"} == {*TRACKERS, "none"}
