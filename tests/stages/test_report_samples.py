"""The strip of answers over the steps of a training, with hostile ones among them, in a real browser."""

from pathlib import Path
from typing import Any

from stages import report
from stages.pages.example_answers import strips
from stages.store.manifest import manifest_of
from stages.store.workspace import SAMPLES, append_samples, read_samples
from tests.helpers import Chain, as_published, nodes, settings
from tests.rows import work

HOSTILE = "<script>document.title = 'taken over'</script>{{ 7 * 7 }}" + "wide" * 200


def report_inputs(chain: Chain) -> tuple[dict[str, Path], dict[str, Any], dict[str, str]]:
    """The inputs of the report: folders, manifests, titles of models."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    return (
        inputs,
        {k: manifest_of(v) for k, v in inputs.items()},
        nodes(chain.root)["eval"].config.models,
    )


def test_every_model_that_was_sampled_has_every_prompt_of_it(chain: Chain) -> None:
    inputs, manifests, models = report_inputs(chain)
    strip_by_title = {model["title"]: model for model in strips(inputs, manifests, models)}
    assert [*strip_by_title] == ["SFT", "DPO"]
    for title, stage in (("SFT", "sft"), ("DPO", "dpo")):
        samples = read_samples(inputs[stage])
        assert len(strip_by_title[title]["prompts"]) == len({s.id for s in samples})
    (inputs["sft"] / SAMPLES).unlink()
    assert [model["title"] for model in strips(inputs, manifests, models)] == ["DPO"], (
        "of an earlier version, or 0"
    )


def test_what_a_model_said_is_escaped(chain: Chain, tmp_path: Path) -> None:
    inputs, _, _ = report_inputs(chain)
    last = read_samples(inputs["dpo"])[-1]
    last.answer = HOSTILE
    append_samples(inputs["dpo"], [last])
    as_published(inputs["dpo"], SAMPLES)
    report.run(settings("recipe=tiny").report, inputs, work(tmp_path / "report"))
    html = (tmp_path / "report" / "report.html").read_text()
    section = html[html.index('<section id="curves">') :].split("</section>")[0]
    assert "<script" not in html
    assert "&lt;script&gt;" in section
    assert "{{ 7 * 7 }}" in section
